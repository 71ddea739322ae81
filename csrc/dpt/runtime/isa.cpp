#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "dpt/runtime/kernels.h"

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
}
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
  }
  return "";
}

Isa best_isa() {
  const char* wanted = std::getenv("DPT_ISA");
  Isa best = Isa::kBaseline;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (is_supported(isa)) best = isa;
    if (wanted != nullptr && std::strcmp(wanted, to_string(isa)) == 0) break;
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
#endif
    default:
      return baseline::table();
  }
}

}  // namespace dpt::runtime
