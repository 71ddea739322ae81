// csrc/dpt/decoder/reassemble.h -- tokens to image-like features (Ranftl et al. 2021, Sec. 3).
#pragma once

#include "dpt/layers.h"

namespace dpt {

enum class ReadMode { kIgnore, kAdd, kProject };

// Folds the readout token into the patch tokens and drops it: [B, 1+N, D] -> [B, N, D].
// Of two prefix tokens (DeiT distilled) `project` reads the first only and `add` the mean of both:
// isl-org/DPT dpt/vit.py.
struct DPT_API Read {
  ReadMode mode = ReadMode::kProject;
  int64_t num_prefix_tokens = 1;
  Linear project;  // kProject only: [D, 2D]

  Tensor operator()(const Tensor& tokens) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    if (mode == ReadMode::kProject) v("project", project);
  }
};

// From the patch grid to one `stride` of the image: transposed convolution for a finer grid,
// nothing for the same, strided 3x3 convolution for a coarser one. [B, C, h, w] -> [B, C, h * patch
// / stride, w * patch / stride].
struct DPT_API Resample {
  int64_t channels, patch_size, stride;
  ConvTranspose2d up;
  Conv2d down;

  Resample(int64_t channels, int64_t patch_size, int64_t stride);

  Tensor operator()(const Tensor& x) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    if (stride < patch_size) up.visit(v);
    if (stride > patch_size) down.visit(v);
  }
};

// One level: Read, Concatenate to a grid, 1x1 projection, Resample. Of a convolutional stage it is
// nothing: the stage's map already is what these make.
struct DPT_API ReassembleLevel {
  bool convolutional = false;
  Read read;
  Conv2d project;
  Resample resample;

  // tokens [B, 1+N, D] of an h x w grid -> [B, C, H / stride, W / stride].
  Tensor operator()(const Tensor& tokens, const c10::SymInt& h, const c10::SymInt& w) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    if (convolutional) return;
    v("read", read);
    v("project", project);
    v("resample", resample);
  }
};

struct DPT_API ReassembleOptions {
  ReadMode readout;
  int64_t width, num_prefix_tokens, patch_size;
  int64_t conv_levels;                       // that many of the finest come as maps
  std::array<int64_t, 4> strides, channels;  // finest level first
};

struct DPT_API Reassemble {
  ReassembleOptions options;
  std::vector<ReassembleLevel> levels;  // finest first

  explicit Reassemble(const ReassembleOptions& options);

  // Four of [B, 1+N, D], or of [B, C_i, H / s_i, W / s_i] for the first conv_levels, for an image
  // of height x width -> four of [B, C_i, H / s_i, W / s_i], finest first.
  std::vector<Tensor> operator()(at::TensorList taps, const c10::SymInt& height,
                                 const c10::SymInt& width) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    visit_each(levels, v);
  }
};

}  // namespace dpt
