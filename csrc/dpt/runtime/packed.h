// csrc/dpt/runtime/packed.h -- a network's weights as the kernels of one instruction set want them.
#pragma once

#include <functional>

#include "dpt/runtime/kernels.h"
#include "dpt/runtime/network.h"

namespace dpt::runtime {

// Memory that is aligned for vectors.
class DPT_API Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);

  void* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

struct PackedProduct {
  bool winograd = false;
  std::vector<Tap> taps;
  int64_t run = 0;                    // channels of a group
  std::vector<PackedMatrix> weights;  // one a group; none for Winograd
  std::vector<Buffer> buffers;        // what they, or Winograd's weights, lie in
};

// Packs the products of a network of float32 that are not packed yet, each in its precision, on all
// threads of torch, and tells `done`, on any of them, of each weight that was packed.
void pack(Network& network, const Kernels& kernels,
          const std::function<void(const Tensor&)>& done = {});

}  // namespace dpt::runtime
