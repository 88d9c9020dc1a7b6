// The choice of the instruction set.
#include <algorithm>

#include "dmamba/common/error.h"
#include "tests/cpp/ops/test_support.h"

namespace dmamba::ops::testing {
namespace {

TEST(CpuCapability, PortableIsAlwaysThereAndLast) {
  const auto names = cpu_capabilities();
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.back(), "portable");
  for (const std::string& name : names) {
    EXPECT_TRUE(name == "avx512" || name == "avx2" || name == "portable") << name;
  }
  EXPECT_NE(std::find(names.begin(), names.end(), cpu_capability()), names.end());
}

#if defined(__x86_64__)
TEST(CpuCapability, FindsWhatTheProcessorHas) {
  const auto names = cpu_capabilities();
  const auto has = [&](const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  EXPECT_EQ(has("avx2"), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(has("avx512"),
            __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"));
}
#endif

TEST(CpuCapability, CanBeChosen) {
  const SettingsGuard guard;
  for (const std::string& name : cpu_capabilities()) {
    set_cpu_capability(name);
    EXPECT_EQ(cpu_capability(), name);
  }
}

TEST(CpuCapability, UnknownNameIsAnErrorThatListsTheNames) {
  const std::string before = cpu_capability();
  try {
    set_cpu_capability("sse9");
    FAIL() << "no error";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("'sse9'"), std::string::npos) << message;
    for (const std::string& name : cpu_capabilities()) {
      EXPECT_NE(message.find(name), std::string::npos) << message;
    }
  }
  EXPECT_EQ(cpu_capability(), before);
}

}  // namespace
}  // namespace dmamba::ops::testing
