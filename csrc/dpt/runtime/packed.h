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

// Lays the weights of the transformer's blocks out in panels, where their sizes allow it; they are
// most of a network. Kernels that read panels need no other memory for them than the file's, which
// is read when it is needed and shared by all processes that mapped it.
DPT_API void to_panels(Network& network);
DPT_API void from_panels(Network& network);

// Packs the products of a network of float32 that are not packed yet, each in its precision, on all
// threads of torch, and tells `done`, on any of them, of each weight that is not needed any more.
DPT_API void pack(Network& network, const Kernels& kernels,
                  const std::function<void(const Tensor&)>& done = {});

}  // namespace dpt::runtime
