// The log: levels by name, text taken as it is, stderr.
#include "dmamba/common/log.h"

#include <gtest/gtest.h>

#include <string>

#include "dmamba/common/error.h"

namespace dmamba {
namespace {

class Log : public ::testing::Test {
 protected:
  void TearDown() override { set_log_level("info"); }
};

TEST_F(Log, LevelsAreNamed) {
  EXPECT_EQ(log_level(), "info");
  for (const char* level : {"trace", "debug", "info", "warning", "error", "off"}) {
    set_log_level(level);
    EXPECT_EQ(log_level(), level);
  }
}

TEST_F(Log, UnknownLevelIsAnErrorAndChangesNothing) {
  for (const char* level : {"loud", "", "INFO", "warn"}) {
    try {
      set_log_level(level);
      FAIL() << level;
    } catch (const ConfigError& error) {
      EXPECT_EQ(std::string(error.what()),
                "log level '" + std::string(level) +
                    "': unknown; allowed: trace, debug, info, warning, error, off");
    }
  }
  EXPECT_EQ(log_level(), "info");
}

TEST_F(Log, ShowsTheLevelAndWhatIsMoreSevere) {
  set_log_level("warning");
  ::testing::internal::CaptureStderr();
  log_debug("one");
  log_info("two");
  log_warning("three");
  const std::string shown = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(shown.find("one"), std::string::npos);
  EXPECT_EQ(shown.find("two"), std::string::npos);
  EXPECT_NE(shown.find("three"), std::string::npos);
  EXPECT_NE(shown.find("dmamba"), std::string::npos);
}

TEST_F(Log, BracesAreText) {
  ::testing::internal::CaptureStderr();
  log_info("a {} b {0} %s {");
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("a {} b {0} %s {"), std::string::npos);
}

}  // namespace
}  // namespace dmamba
