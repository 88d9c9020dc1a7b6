// Fibers by ucontext.h, and what each change between them tells the sanitizers.
#include "tests/emulation/fiber.h"

// Absent where the program is compiled without sanitizers.
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) __attribute__((weak));
void __asan_poison_memory_region(const volatile void*, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void*, size_t) __attribute__((weak));
void* __tsan_create_fiber(unsigned) __attribute__((weak));
void* __tsan_get_current_fiber() __attribute__((weak));
void __tsan_switch_to_fiber(void*, unsigned) __attribute__((weak));
void __tsan_acquire(void*) __attribute__((weak));
void __tsan_release(void*) __attribute__((weak));
void __tsan_ignore_thread_begin() __attribute__((weak));
void __tsan_ignore_thread_end() __attribute__((weak));
}

namespace dmamba::emulation {
namespace {

constexpr unsigned kUnordered = 1;  // a change of fibers orders nothing, for ThreadSanitizer

/// What runs outside of all fibers, once it has resumed one.
struct Outside {
  Context context;
  void* tsan = nullptr;
  void* fake_stack = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};

Outside outside;
Fiber* current = nullptr;

/// Around a change to another stack: before it, and where it ends.
void begin_change(void** fake_stack, const void* stack, size_t bytes) {
  if (__sanitizer_start_switch_fiber != nullptr) {
    __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
  }
}
void end_change(void* fake_stack, const void** stack, size_t* bytes) {
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
  }
}
void tell_tsan(void* fiber) {
  if (__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(fiber, kUnordered);
}

}  // namespace

void Context::change_to(Context& next) {
  begun_ = true;
  if (__tsan_switch_to_fiber != nullptr) {
    swapcontext(&whole_, &next.whole_);
  } else if (_setjmp(place_) == 0) {
    if (next.begun_) longjmp(next.place_, 1);
    next.begun_ = true;
    setcontext(&next.whole_);
  }
}

Fiber::Fiber(void (*function)())
    : stack_(std::make_unique_for_overwrite<unsigned char[]>(kStackBytes)), function_(function) {
  getcontext(&whole_);
  whole_.uc_stack.ss_sp = stack_.get();
  whole_.uc_stack.ss_size = kStackBytes;
  makecontext(&whole_, begin, 0);
  if (__tsan_create_fiber != nullptr) tsan_ = __tsan_create_fiber(0);
}

void Fiber::begin() {
  end_change(nullptr, &outside.stack, &outside.stack_bytes);
  current->function_();
}

void Fiber::resume() {
  current = this;
  if (__tsan_get_current_fiber != nullptr) outside.tsan = __tsan_get_current_fiber();
  begin_change(&outside.fake_stack, stack_.get(), kStackBytes);
  tell_tsan(tsan_);
  outside.context.change_to(*this);
  end_change(outside.fake_stack, nullptr, nullptr);
}

void Fiber::pause() {
  begin_change(&fake_stack_, outside.stack, outside.stack_bytes);
  tell_tsan(outside.tsan);
  change_to(outside.context);
  end_change(fake_stack_, nullptr, nullptr);
}

void leave(void* key) {
  if (__tsan_release != nullptr) __tsan_release(key);
}
void enter(void* key) {
  if (__tsan_acquire != nullptr) __tsan_acquire(key);
}

Unseen::Unseen() {
  if (__tsan_ignore_thread_begin != nullptr) __tsan_ignore_thread_begin();
}
Unseen::~Unseen() {
  if (__tsan_ignore_thread_end != nullptr) __tsan_ignore_thread_end();
}

void forbid(const void* memory, size_t bytes) {
  if (__asan_poison_memory_region != nullptr) __asan_poison_memory_region(memory, bytes);
}
void allow(const void* memory, size_t bytes) {
  if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(memory, bytes);
}

}  // namespace dmamba::emulation
