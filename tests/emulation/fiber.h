// Fibers: functions that take turns on one thread, each on a stack of its own, and that sanitizers
// know as such.
#pragma once

#include <ucontext.h>

#include <csetjmp>
#include <cstddef>
#include <memory>

namespace dmamba::emulation {

/// A stack, and where on it to go on. Past the first time by setjmp and longjmp, which unlike
/// swapcontext ask nothing of the kernel; but ThreadSanitizer takes them to stay on one stack.
class Context {
 public:
  void change_to(Context& next);

 protected:
  ucontext_t whole_{};
  jmp_buf place_{};
  bool begun_ = false;
};

/// Runs `function`, which never returns, when it is resumed.
class Fiber : public Context {
 public:
  explicit Fiber(void (*function)());
  /// From outside of all fibers, until it pauses.
  void resume();
  /// From within.
  void pause();

 private:
  static void begin();
  static constexpr size_t kStackBytes = 256 * 1024;

  std::unique_ptr<unsigned char[]> stack_;
  void (*function_)();
  void* tsan_ = nullptr;        // what ThreadSanitizer knows it by
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

/// For ThreadSanitizer, to whom a change of fibers orders nothing: what was done before leave(key)
/// comes before what is done after a later enter(key).
void leave(void* key);
void enter(void* key);

/// While it lives, ThreadSanitizer does not look: at the emulation's own memory, whose threads take
/// turns.
struct Unseen {
  Unseen();
  ~Unseen();
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

/// For AddressSanitizer: whether these bytes may be touched.
void forbid(const void* memory, size_t bytes);
void allow(const void* memory, size_t bytes);

}  // namespace dmamba::emulation
