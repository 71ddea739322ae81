// csrc/dpt/runtime/frozen_model.h -- a network made ready to predict, and only that, on a CPU
// or a GPU.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>

#include "dpt/runtime/network.h"
#include "dpt/runtime/profile.h"

namespace dpt {

struct DPT_API FreezeOptions {
  // Of the factors of products: float32 or bfloat16 (whose sums are float32, too). On a CPU also
  // int8 where that pays and the calibration images allow (runtime/calibration.h), float32
  // elsewhere; on a GPU also float16, and there maps are of this type, too, or float8_e4m3fn: the
  // linear layers of the transformer's blocks, with a scale for each token and each output channel,
  // and all else as of bfloat16.
  at::ScalarType dtype = at::kFloat;
  // For int8, and only for it: images as the model will see, each tensor float32 [N, 3, H, W] on
  // the CPU, normalised as in training.
  std::vector<Tensor> calibration{};
  // How many threads one call takes on a CPU; 0: at::get_num_threads() at the call.
  int threads = 0;
  // Where it predicts: the CPU, or a CUDA device.
  at::Device device = at::kCPU;
  // How pixels become images normalised as in training: (pixel / 255 - mean) / std.
  std::array<double, 3> mean{0.5, 0.5, 0.5}, std{0.5, 0.5, 0.5};
  // What of the rewrites is left out, for measurements.
  runtime::Rewrites rewrites{};
};

// Calls may come from several threads at once. On a CPU they are independent of each other, and
// each gives the same bits as one alone, with any number of threads. On a GPU they are in order,
// each behind the one before it, and a call only gives work to the current stream; the first one of
// a shape of images captures a CUDA graph, which the later ones replay.
class DPT_API FrozenModel {
 public:
  // Folds and packs the tensors of a model on the CPU, which is not needed any more afterwards.
  // Throws (ValueError in Python) for another dtype or device, tensors on another device, or int8
  // without calibration images.
  explicit FrozenModel(const Model& model, const FreezeOptions& options = {});

  // images: [B, 3, H, W] on the model's device, float32, normalised as in training, or pixels as
  // uint8, of any strides, which are normalised here; H and W as `Model` wants them. Depth is
  // float32 [B, H, W], logits are [B, K, H, W] with channels next to each other. Where `profile` is
  // one, the times of the parts are added to it (on a CPU).
  Output operator()(const Tensor& images, runtime::Profile* profile = nullptr) const;

  const Config& config() const;
  const FreezeOptions& options() const;  // without the calibration images
  // Layers that int8 would have cost too much, which are float32, or bfloat16 where there is AMX:
  // names as in the file, the worst first.
  const std::vector<std::string>& fallbacks() const;

  // One safetensors file: the folded tensors, in the metadata the config, "format_version", for
  // int8 the precision of each layer, and what the caller adds. "processor" is a JSON object with
  // mean and std, unless the caller has one with more. Written to a temporary name first.
  void save(const std::string& path, const std::map<std::string, std::string>& metadata = {}) const;

  // Reads such a file, wherever it was made. Most weights of float32 stay in it, where AVX-512
  // reads them, and the file must not be shortened in place while the model lives; others are
  // packed one by one. Throws (ValueError in Python) for another file, another format_version, or
  // tensors that do not fit the config.
  static FrozenModel load(const std::string& path, int threads = 0, at::Device device = at::kCPU);

  // What the caller of `save` added.
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct State;
  explicit FrozenModel(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

DPT_API FrozenModel freeze(const Model& model, const FreezeOptions& options = {});

}  // namespace dpt
