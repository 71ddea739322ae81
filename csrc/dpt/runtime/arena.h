// csrc/dpt/runtime/arena.h -- memory for one pass through a network, taken and given back like a
// stack. After the first pass of a size it is one block, and nothing is allocated any more.
#pragma once

#include <vector>

#include "dpt/runtime/packed.h"

namespace dpt::runtime {

class DPT_API Arena {
  // Where the stack ends: all that is behind, in this block and the next ones, is free.
  struct Top {
    size_t block = 0, in_block = 0;
    size_t used = 0;  // bytes taken in all
  };

 public:
  // What was taken since this was made is given back at its end.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), top_(arena.top_) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() { arena_.top_ = top_; }

   private:
    Arena& arena_;
    Top top_;
  };

  // Aligned to 64 bytes.
  void* take(size_t bytes);
  float* floats(int64_t count) { return static_cast<float*>(take(count * sizeof(float))); }

  // Between passes: makes one block of what the last one needed.
  void settle();

 private:
  Top top_;
  size_t most_ = 0;  // bytes taken at one time
  std::vector<Buffer> blocks_;
};

}  // namespace dpt::runtime
