// csrc/dpt/runtime/execute.h -- a kernel on all threads.
#pragma once

#include <omp.h>

#include <algorithm>

#include "dpt/runtime/kernels.h"

namespace dpt::runtime {

// `take(bytes)` gives the scratch memory, aligned to 64 bytes.
template <class Work, class Take>
void execute(const Kernel<Work>& kernel, const Work& work, int threads, const Take& take) {
  const int64_t units = kernel.units(work);
  if (units == 0) return;
  const int count = static_cast<int>(std::min<int64_t>(threads, units));
  const size_t bytes = (kernel.scratch(work) + 63) / 64 * 64;
  char* scratch = static_cast<char*>(take(bytes * count));
  // More parts than threads: a thread whose core others use, too, leaves some to the rest. Of
  // kernels with blocks one for each block, or some more, as many for each thread.
  constexpr int64_t kParts = 4;
  const int64_t block = kernel.block != nullptr ? kernel.block(work) : 0;
  const int64_t rounds = block > 0 ? ((units + block - 1) / block + count - 1) / count : kParts;
  const int64_t parts = count > 1 ? std::min(rounds * count, units) : 1;
  // The larger parts first: the threads end at about the same time.
  const auto begin = [&](int64_t i) { return units / parts * i + std::min(i, units % parts); };
#pragma omp parallel for num_threads(count) schedule(dynamic, 1) if (count > 1)
  for (int64_t i = 0; i < parts; ++i) {
    kernel.run(work, begin(i), begin(i + 1), scratch + bytes * omp_get_thread_num());
  }
}

}  // namespace dpt::runtime
