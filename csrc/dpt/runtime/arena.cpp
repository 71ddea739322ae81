#include "dpt/runtime/arena.h"

#include <algorithm>

namespace dpt::runtime {

void* Arena::take(size_t bytes) {
  const size_t size = (bytes + 63) / 64 * 64, start = used_;
  used_ += size;
  most_ = std::max(most_, used_);
  if (used_ <= block_.size()) return static_cast<char*>(block_.data()) + start;
  return more_.emplace_back(size).data();
}

void Arena::settle() {
  more_.clear();
  if (most_ > block_.size()) {
    block_ = {};
    block_ = Buffer(most_);
  }
}

}  // namespace dpt::runtime
