// csrc/dpt/runtime/profile.h -- where the time of a pass goes.
#pragma once

#include "dpt/export.h"

namespace dpt::runtime {

// Seconds by part of the network; zero for a part that it does not have.
struct DPT_API Profile {
  double stages = 0, patch_embed = 0, attention = 0, mlp = 0, reassemble = 0, fusion = 0, head = 0;

  // f(name, seconds) for each part, in the order in which a pass comes to them.
  template <class F>
  void for_each(F&& f) const {
    f("convolutional stages", stages);
    f("patch embedding", patch_embed);
    f("attention", attention);  // with its norm, queries, keys and values, and projection
    f("MLP", mlp);              // with its norm
    f("reassemble", reassemble);
    f("fusion", fusion);
    f("head", head);
  }
};

}  // namespace dpt::runtime
