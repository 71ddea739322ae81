// csrc/dpt/runtime/frozen_model.h -- a network made ready to predict, and only that, on a CPU.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "dpt/runtime/network.h"

namespace dpt {

struct DPT_API FreezeOptions {
  // Of the factors of products: float32 or bfloat16 (whose sums are float32, too).
  at::ScalarType dtype = at::kFloat;
  // How many threads one call takes; 0: at::get_num_threads() at the call.
  int threads = 0;
  // What of the rewrites is left out, for measurements.
  runtime::Rewrites rewrites{};
};

// Calls from several threads at once are independent of each other, and each gives the same bits
// as one alone, with any number of threads.
class DPT_API FrozenModel {
 public:
  // Folds and packs the tensors of a model on the CPU, which is not needed any more afterwards.
  // Throws (ValueError in Python) for another dtype, or tensors on another device.
  explicit FrozenModel(const Model& model, const FreezeOptions& options = {});

  // images: float32 [B, 3, H, W] on the CPU, normalised as in training; H and W as `Model` wants
  // them. Depth is float32 [B, H, W], logits are [B, K, H, W] with channels next to each other.
  Output operator()(const Tensor& images) const;

  const Config& config() const;
  const FreezeOptions& options() const;

  // One safetensors file: the folded tensors, in the metadata the config, "format_version" and
  // what the caller adds. Written to a temporary name first.
  void save(const std::string& path, const std::map<std::string, std::string>& metadata = {}) const;

  // Reads such a file; tensors are packed one by one. Throws (ValueError in Python) for another
  // file, another format_version, or tensors that do not fit the config.
  static FrozenModel load(const std::string& path, int threads = 0);

  // What the caller of `save` added.
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct State;
  explicit FrozenModel(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

DPT_API FrozenModel freeze(const Model& model, const FreezeOptions& options = {});

}  // namespace dpt
