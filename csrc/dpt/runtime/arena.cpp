#include "dpt/runtime/arena.h"

#include <algorithm>

namespace dpt::runtime {

namespace {

constexpr size_t kBlock = size_t{1} << 26;  // at least, before the need is known

}  // namespace

void* Arena::take(size_t bytes) {
  const size_t size = (bytes + 63) / 64 * 64;
  while (top_.block < blocks_.size() && top_.in_block + size > blocks_[top_.block].size()) {
    ++top_.block;
    top_.in_block = 0;
  }
  if (top_.block == blocks_.size()) blocks_.emplace_back(std::max(size, kBlock));
  char* const start = static_cast<char*>(blocks_[top_.block].data()) + top_.in_block;
  top_.in_block += size;
  top_.used += size;
  most_ = std::max(most_, top_.used);
  return start;
}

void Arena::settle() {
  TORCH_INTERNAL_ASSERT(top_.used == 0, "a pass keeps ", top_.used, " bytes of its arena");
  if (blocks_.size() == 1) return;
  blocks_.clear();
  if (most_ > 0) blocks_.emplace_back(most_);
}

}  // namespace dpt::runtime
