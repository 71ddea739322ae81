// csrc/dpt/ops/runtime.h -- kernels of the CPU runtime in operators.
#pragma once

#include <ATen/Parallel.h>

#include "dpt/common.h"
#include "dpt/runtime/execute.h"
#include "dpt/runtime/kernels.h"

namespace dpt {

// Those for this processor.
inline const runtime::Kernels& runtime_kernels() {
  static const runtime::Kernels& best = runtime::kernels(runtime::best_isa());
  return best;
}

inline Tensor uninitialized_bytes(size_t count) {
  return at::empty({static_cast<int64_t>(count)}, at::TensorOptions(at::kByte));
}

// On as many threads as ATen has.
template <class Work>
void execute(const runtime::Kernel<Work>& kernel, const Work& work) {
  Tensor scratch;
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  runtime::execute(kernel, work, threads, [&](size_t count) {
    scratch = uninitialized_bytes(count);
    return scratch.mutable_data_ptr();
  });
}

}  // namespace dpt
