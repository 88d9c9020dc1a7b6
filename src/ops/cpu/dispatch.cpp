// Which vector kernels this processor can run, and which are in use.
#include "src/ops/cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "dmamba/common/error.h"
#include "dmamba/ops/ops.h"

namespace dmamba::ops {
namespace cpu {
namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    tables.push_back(&kAvx512Kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&kAvx2Kernels);
  }
#endif
  tables.push_back(&kPortableKernels);
  return tables;
}

const KernelTable* find_table(const std::string& name) {
  std::string known;
  for (const KernelTable* table : available_tables()) {
    if (name == table->name) return table;
    known += std::string(known.empty() ? "" : ", ") + table->name;
  }
  throw Error("CPU capability '" + name + "' is not available on this processor; choose one of " +
              known);
}

std::atomic<const KernelTable*>& active_table() {
  static std::atomic<const KernelTable*> active = [] {
    const char* forced = std::getenv("DMAMBA_CPU_CAPABILITY");
    return forced != nullptr && *forced != '\0' ? find_table(forced) : available_tables().front();
  }();
  return active;
}

}  // namespace

const KernelTable& kernels_for(kernels::Storage storage) {
  if (storage == kernels::Storage::kFloat64) return kPortableDoubleKernels;
  return *active_table().load(std::memory_order_relaxed);
}

}  // namespace cpu

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : cpu::available_tables()) names.emplace_back(table->name);
  return names;
}

std::string cpu_capability() { return cpu::active_table().load()->name; }

void set_cpu_capability(const std::string& name) {
  cpu::active_table().store(cpu::find_table(name));
}

}  // namespace dmamba::ops
