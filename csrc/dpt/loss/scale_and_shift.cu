// csrc/dpt/loss/scale_and_shift.cu -- CUDA kernels of the scale- and shift-invariant losses; no
// torch header here.
//
// A block takes an image and runs the functions of scale_and_shift_math.h, as a thread of the host
// does. Neighbouring threads read neighbouring pixels; an image of 384 x 384 passes about fifteen
// times through the block, from the L2 cache. Sums are made in a fixed order: results are
// deterministic.
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "dpt/loss/scale_and_shift_cuda.h"
#include "dpt/loss/scale_and_shift_math.h"

namespace dpt::loss {
namespace {

constexpr int kThreads = 1024;

// The group of loss/group.h that is a block of threads.
class Block {
  using Reduce = cub::BlockReduce<double, kThreads, cub::BLOCK_REDUCE_WARP_REDUCTIONS>;
  using Scan = cub::BlockScan<uint32_t, kThreads>;
  static constexpr int kDigitsPerThread = kNumDigits / kThreads;

 public:
  struct Shared {
    union {
      typename Reduce::TempStorage reduce;
      typename Scan::TempStorage scan;
    };
    uint32_t counts[kNumDigits];
    double total;
    uint32_t digit, num_below, num_equal;
  };

  __device__ explicit Block(Shared& shared) : shared_(shared) {}

  template <class F>
  __device__ void for_each(int64_t n, const F& f) const {
    for (int64_t i = threadIdx.x; i < n; i += kThreads) f(i);
  }

  template <class F>
  __device__ void for_each(int64_t height, int64_t width, const F& f) const {
    if (height <= 0 || width <= 0) return;
    // Dividing in 64 bits costs several times as much as in 32; a batch has fewer than 2^31 pixels.
    const auto n = static_cast<uint32_t>(height * width), w = static_cast<uint32_t>(width);
    for (uint32_t i = threadIdx.x; i < n; i += kThreads) f(i / w, i % w);
  }

  template <int N, class F>
  __device__ Sums<N> sum(int64_t n, const F& f) const {
    Sums<N> sums = {};
    for_each(n, [&](int64_t i) { add(sums, f(i)); });
    return total(sums);
  }

  template <int N, class F>
  __device__ Sums<N> sum(int64_t height, int64_t width, const F& f) const {
    Sums<N> sums = {};
    for_each(height, width, [&](int64_t y, int64_t x) { add(sums, f(y, x)); });
    return total(sums);
  }

  template <class T, class Included, class Value>
  __device__ Selected<T> select(int64_t n, int64_t rank, const Included& included,
                                const Value& value) const {
    Key<T> prefix = 0;
    int64_t num_below = 0, num_equal = 0;
    for (int shift = kKeyBits<T>; shift > 0;) {
      const int width = shift < kDigitBits ? shift : kDigitBits;
      shift -= width;
      const Key<T> last = (Key<T>{1} << width) - 1;
      for_each(kNumDigits, [&](int64_t digit) { shared_.counts[digit] = 0; });
      __syncthreads();
      for_each(n, [&](int64_t i) {
        const Key<T> key = to_key<T>(value(i)) >> shift;
        const bool first = shift + width == kKeyBits<T>;
        if (included(i) && (first || key >> width == prefix)) {
          atomicAdd(&shared_.counts[key & last], 1U);
        }
      });
      __syncthreads();
      find(static_cast<uint32_t>(rank - num_below));
      prefix = prefix << width | shared_.digit;
      num_below += shared_.num_below;
      num_equal = shared_.num_equal;
      __syncthreads();
    }
    return {from_key<T>(prefix), num_below, num_equal};
  }

  static constexpr bool kHasMemory = false;

  __device__ void sync() const { __syncthreads(); }

 private:
  template <int N>
  static __device__ void add(Sums<N>& sums, const Sums<N>& value) {
    for (int k = 0; k < N; ++k) sums.at[k] += value.at[k];
  }

  // Of all threads, and known to all.
  template <int N>
  __device__ Sums<N> total(const Sums<N>& sums) const {
    Sums<N> result;
    for (int k = 0; k < N; ++k) {
      const double sum = Reduce(shared_.reduce).Sum(sums.at[k]);
      if (threadIdx.x == 0) shared_.total = sum;
      __syncthreads();
      result.at[k] = shared_.total;
      __syncthreads();
    }
    return result;
  }

  // The digit of the key of this rank among those counted.
  __device__ void find(uint32_t rank) const {
    uint32_t counts[kDigitsPerThread], below[kDigitsPerThread];
    for (int i = 0; i < kDigitsPerThread; ++i) {
      counts[i] = shared_.counts[threadIdx.x * kDigitsPerThread + i];
    }
    Scan(shared_.scan).ExclusiveSum(counts, below);
    for (int i = 0; i < kDigitsPerThread; ++i) {
      if (below[i] <= rank && rank - below[i] < counts[i]) {
        shared_.digit = threadIdx.x * kDigitsPerThread + i;
        shared_.num_below = below[i];
        shared_.num_equal = counts[i];
      }
    }
    __syncthreads();
  }

  Shared& shared_;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    align_kernel(Terms terms, Shape shape, const T* __restrict__ prediction,
                 const T* __restrict__ target, const uint8_t* __restrict__ mask, T* residual,
                 Stats* all_stats, double* scale, double* shift, int64_t* dropped) {
  __shared__ Block::Shared shared;
  const Block block(shared);
  const int64_t b = blockIdx.x, n = shape.H * shape.W, at = b * n;
  Stats stats;
  const Aligned aligned = align_and_subtract(block, terms, n, prediction + at, target + at,
                                             mask + at, stats, residual + at);
  if (terms.data == DataTerm::kTrimmed && !terms.published) {
    block.sync();
    trim(block, terms.trim_millionths, n, static_cast<int64_t>(stats.count), residual + at, stats);
  }
  if (threadIdx.x != 0) return;
  all_stats[b] = stats;
  scale[b] = aligned.scale;
  shift[b] = aligned.shift;
  dropped[b] = aligned.dropped;
}

// One block: the residuals of the whole batch are trimmed together.
template <class T>
__global__ void __launch_bounds__(kThreads)
    trim_batch_kernel(Terms terms, Shape shape, const T* __restrict__ residual, Stats* all_stats) {
  __shared__ Block::Shared shared;
  const Block block(shared);
  const double count =
      block.sum<1>(shape.B, [&](int64_t b) { return Sums<1>{all_stats[b].count}; }).at[0];
  Stats batch = {};
  trim(block, terms.trim_millionths, shape.B * shape.H * shape.W, static_cast<int64_t>(count),
       residual, batch);
  block.for_each(shape.B, [&](int64_t b) {
    all_stats[b].threshold = batch.threshold;
    all_stats[b].kept_at_threshold = batch.kept_at_threshold;
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(Terms terms, Shape shape, const T* __restrict__ residual,
               const Stats* __restrict__ all_stats, double* sums, double* counts) {
  __shared__ Block::Shared shared;
  const int64_t b = blockIdx.x, row = b * (1 + terms.num_scales);
  // All threads write the same values.
  sum_terms(Block(shared), terms, shape.H, shape.W, all_stats[b], residual + b * shape.H * shape.W,
            sums + row, counts + row);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Terms terms, Shape shape, const double* __restrict__ grad_terms,
                    const Stats* __restrict__ all_stats, const T* __restrict__ prediction,
                    const T* __restrict__ target, const T* __restrict__ residual, T* grad) {
  __shared__ Block::Shared shared;
  const int64_t b = blockIdx.x, at = b * shape.H * shape.W;
  backward(Block(shared), terms, shape.H, shape.W, grad_terms + b * (1 + terms.num_scales),
           all_stats[b], prediction + at, target + at, residual + at, grad + at);
}

}  // namespace

template <class T>
cudaError_t launch_forward(const Terms& terms, const Shape& shape, const T* prediction,
                           const T* target, const uint8_t* mask, T* residual, Stats* stats,
                           double* scale, double* shift, int64_t* dropped, double* sums,
                           double* counts, cudaStream_t stream) {
  const auto num_blocks = static_cast<unsigned>(shape.B);
  align_kernel<<<num_blocks, kThreads, 0, stream>>>(terms, shape, prediction, target, mask,
                                                    residual, stats, scale, shift, dropped);
  if (terms.data == DataTerm::kTrimmed && terms.published) {
    trim_batch_kernel<<<1, kThreads, 0, stream>>>(terms, shape, residual, stats);
  }
  sum_kernel<<<num_blocks, kThreads, 0, stream>>>(terms, shape, residual, stats, sums, counts);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_backward(const Terms& terms, const Shape& shape, const double* grad_terms,
                            const Stats* stats, const T* prediction, const T* target,
                            const T* residual, T* grad, cudaStream_t stream) {
  backward_kernel<<<static_cast<unsigned>(shape.B), kThreads, 0, stream>>>(
      terms, shape, grad_terms, stats, prediction, target, residual, grad);
  return cudaGetLastError();
}

#define INSTANTIATE(T)                                                                             \
  template cudaError_t launch_forward<T>(const Terms&, const Shape&, const T*, const T*,           \
                                         const uint8_t*, T*, Stats*, double*, double*, int64_t*,   \
                                         double*, double*, cudaStream_t);                          \
  template cudaError_t launch_backward<T>(const Terms&, const Shape&, const double*, const Stats*, \
                                          const T*, const T*, const T*, T*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace dpt::loss
