// csrc/dpt/runtime/arena.h -- memory for one pass through a network, taken and given back like a
// stack. After the first pass of a size it is one block, and nothing is allocated any more.
#pragma once

#include <vector>

#include "dpt/runtime/packed.h"

namespace dpt::runtime {

class DPT_API Arena {
 public:
  // What was taken since this was made is given back at its end.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), used_(arena.used_) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() { arena_.used_ = used_; }

   private:
    Arena& arena_;
    size_t used_;
  };

  // Aligned to 64 bytes.
  void* take(size_t bytes);
  float* floats(int64_t count) { return static_cast<float*>(take(count * sizeof(float))); }

  // Between passes: makes one block of what the last one needed.
  void settle();

 private:
  size_t used_ = 0, most_ = 0;  // bytes
  Buffer block_;
  std::vector<Buffer> more_;  // what did not fit; kept until `settle`
};

}  // namespace dpt::runtime
