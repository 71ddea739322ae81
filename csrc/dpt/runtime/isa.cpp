#include <cstdlib>
#include <cstring>

#include "dpt/runtime/kernels.h"

#ifdef DPT_WITH_X86_KERNELS
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace dpt::runtime {

namespace baseline {
const Kernels& table();
}
#ifdef DPT_WITH_X86_KERNELS
namespace avx2 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
const Kernels& table_with_vnni();
const Kernels& table_with_bfloat16();
const Kernels& table_with_tiles();
}  // namespace avx512

namespace {

// The processor has tiles, the system saves them, and lends them to this process, which has to ask.
bool has_tiles() {
#ifdef __linux__
  unsigned a, b, c, d;
  constexpr unsigned kFeatures = 1U << 22 | 1U << 24 | 1U << 25;  // bfloat16, tiles, int8
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kFeatures) != kFeatures) return false;
  constexpr unsigned kSaved = 3U << 17;
  asm("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  if ((a & kSaved) != kSaved) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Slower than the one before it. A Xeon of the fourth generation begins a vdpbf16ps every second
// cycle, and four multiply-additions of float32, which is twice the products; others of Intel's are
// taken to do likewise.
bool is_slow(Isa isa) { return isa == Isa::kAvx512Bf16 && __builtin_cpu_is("intel"); }

}  // namespace
#else
namespace {
bool is_slow(Isa) { return false; }
}  // namespace
#endif

bool is_supported(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
#ifdef DPT_WITH_X86_KERNELS
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Vnni:
      return is_supported(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512Bf16:
      return is_supported(Isa::kAvx512Vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx: {
      static const bool tiles = is_supported(Isa::kAvx512Bf16) && has_tiles();
      return tiles;
    }
#endif
    default:
      return false;
  }
}

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "";
}

Isa best_isa() {
  const char* wanted = std::getenv("DPT_ISA");
  Isa best = Isa::kBaseline;
  for (const Isa isa : kIsas) {
    const bool is_wanted = wanted != nullptr && std::strcmp(wanted, to_string(isa)) == 0;
    if (is_supported(isa) && (is_wanted || !is_slow(isa))) best = isa;
    if (is_wanted) break;
  }
  return best;
}

const Kernels& kernels(Isa isa) {
  switch (isa) {
#ifdef DPT_WITH_X86_KERNELS
    case Isa::kAvx2:
      return avx2::table();
    case Isa::kAvx512:
      return avx512::table();
    case Isa::kAvx512Vnni:
      return avx512::table_with_vnni();
    case Isa::kAvx512Bf16:
      return avx512::table_with_bfloat16();
    case Isa::kAmx:
      return avx512::table_with_tiles();
#endif
    default:
      return baseline::table();
  }
}

}  // namespace dpt::runtime
