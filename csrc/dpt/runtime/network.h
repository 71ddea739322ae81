// csrc/dpt/runtime/network.h -- a network to predict with: the tensors of a Model after the exact
// rewrites, of float32 or float64. It is what a frozen file holds.
#pragma once

#include <memory>
#include <type_traits>

#include "dpt/config.h"
#include "dpt/model.h"
#include "dpt/runtime/kernels.h"

namespace dpt::runtime {

struct PackedProduct;

// A linear layer or convolution: weight [n, c / groups, kh, kw] (linear: 1 x 1), bias [n] or
// undefined. Its output has ceil(H / stride) x ceil(W / stride) pixels; `above` rows of zeros lie
// above the input and `left` columns left of it, and as many as it takes on the other sides.
// `border` [16, n] or undefined is a bias by where the output pixel is: number 4 * r + c, r = 1
// where a row above the input is read plus 2 where one below it is, and c likewise of columns.
// A linear layer's weight may be `in_panels` instead: see kernels.h.
struct Product {
  Tensor weight{}, bias{}, border{};
  int64_t stride = 1, above = 0, left = 0, groups = 1;
  bool in_panels = false;
  Precision precision = Precision::kFloat32;      // in which it is packed
  std::shared_ptr<const PackedProduct> packed{};  // see packed.h
  Tensor scale{};  // of a float8 weight, what each output channel is times, [n]; see evaluate.h

  bool defined() const { return weight.defined(); }
  int64_t n() const { return in_panels ? weight.size(1) * weight.size(3) : weight.size(0); }
  int64_t channels() const {
    return in_panels ? weight.size(0) * weight.size(2) : weight.size(1) * groups;
  }

  template <class Visitor>
  void visit(Visitor&& v) {
    v("weight", weight);
    v("bias", bias);
    v("border", border);
  }
};

// Pre-norm transformer block. The gains and shifts of the two normalisations are in qkv and fc1,
// the scale of the scores is in the queries' part of qkv, the values' bias is in proj, and the keys
// have none, since softmax takes it off.
struct Block {
  Product qkv, proj, fc1, fc2;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("qkv", qkv);
    v("proj", proj);
    v("fc1", fc1);
    v("fc2", fc2);
  }
};

struct Transformer {
  int64_t heads = 1, grid = 0, patch_size = 16;
  double eps = 1e-6;
  std::vector<int64_t> taps{};
  Tensor prefix{};     // [P, D], the readout (and distillation) token with its position
  Tensor pos_embed{};  // [grid * grid, D], of the patches
  Product patch_embed{};
  std::vector<Block> blocks{};

  template <class Visitor>
  void visit(Visitor&& v) {
    v("prefix", prefix);
    v("pos_embed", pos_embed);
    v("patch_embed", patch_embed);
    v("blocks", blocks);
  }
};

// A convolution and a group normalisation; without groups none (batch normalisation is in the
// convolution).
struct NormedProduct {
  Product conv{};
  Tensor weight{}, bias{};  // of the normalisation, [n]
  int64_t norm_groups = 0;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv", conv);
    if (norm_groups > 0) {
      v("norm.weight", weight);
      v("norm.bias", bias);
    }
  }
};

struct Bottleneck {
  NormedProduct conv1, conv2, conv3;
  std::optional<NormedProduct> downsample{};

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv1", conv1);
    v("conv2", conv2);
    v("conv3", conv3);
    if (downsample) v("downsample", *downsample);
  }
};

struct Stages {
  NormedProduct stem;
  bool zero_padded_pool = false;  // with the odd row and column of zeros below and on the right
  std::vector<std::vector<Bottleneck>> stages{};

  template <class Visitor>
  void visit(Visitor&& v) {
    v("stem", stem);
    for (size_t i = 0; i < stages.size(); ++i) {
      v(("stages." + std::to_string(i)).c_str(), stages[i]);
    }
  }
};

// From a tap to the map that fusion adds: Read, Concatenate, Resample and fusion's 3x3 convolution.
struct Level {
  // Of a convolutional stage: the map is what the stage gave, and only `input` is left.
  bool convolutional = false;
  ReadMode readout = ReadMode::kIgnore;
  Product read{}, read_token{};      // kProject: GELU(read(patch) + read_token(readout token))
  std::optional<Product> project{};  // 1x1
  // Towards a finer grid: either `up` [C, C, s, s] and its bias, or s * s phases of `input`.
  int64_t factor = 1;
  Tensor up{}, up_bias{};
  std::optional<Product> down{};  // towards a coarser one
  Product input{};                // 3x3, undefined with phases
  std::vector<Product> phases{};  // of the output pixels (y * s + p, x * s + q), number s * p + q

  template <class Visitor>
  void visit(Visitor&& v) {
    if (readout == ReadMode::kProject && !convolutional) {
      v("read", read);
      v("read_token", read_token);
    }
    if (project) v("project", *project);
    if (up.defined()) {
      v("up", up);
      v("up_bias", up_bias);
    }
    if (down) v("down", *down);
    if (phases.empty()) v("input", input);
    v("phases", phases);
  }
};

// ReLU, 3x3, ReLU, 3x3, plus the input or its ReLU.
struct Unit {
  Product conv1, conv2;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv1", conv1);
    v("conv2", conv2);
  }
};

struct FusionLevel {
  std::optional<Unit> unit1{};  // not at the coarsest level
  Unit unit2{};
  std::optional<Product> project{};  // 1x1

  template <class Visitor>
  void visit(Visitor&& v) {
    if (unit1) v("unit1", *unit1);
    v("unit2", unit2);
    if (project) v("project", *project);
  }
};

struct DepthHead {
  Product conv1, conv2;      // 3x3, each of a map that was resized to twice its size
  Tensor dot{}, dot_bias{};  // the last 1x1 convolution, [n] and [1]
  bool align_corners = true;
  std::optional<Inversion> inversion{};

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv1", conv1);
    v("conv2", conv2);
    v("dot", dot);
    v("dot_bias", dot_bias);
  }
};

struct SegmentationHead {
  Product conv;      // 3x3, of the map resized to twice its size; ReLU
  Product classify;  // 1x1

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv", conv);
    v("classify", classify);
  }
};

// What may be left out; all are exact. For measurements.
struct DPT_API Rewrites {
  // The last fusion's 1x1 projection goes into the heads' 3x3 convolutions.
  bool fold_project = true;
  // A level's 1x1 projection goes into the 3x3 convolution behind it, where that saves products.
  bool fold_level_project = true;
  // Transposed convolution and 3x3 convolution become convolutions of the small grid, one a phase.
  bool phases = true;
  // 3x3 convolutions of resized maps: products before the resizing, and sums after it.
  bool products_first = true;
  // 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), in float32.
  bool winograd = true;

  // f(name, switch) for each of them.
  template <class F>
  void for_each(F&& f) {
    f("fold_project", fold_project);
    f("fold_level_project", fold_level_project);
    f("phases", phases);
    f("products_first", products_first);
    f("winograd", winograd);
  }
};

struct DPT_API Network {
  Config config;
  Rewrites rewrites{};
  std::optional<Stages> stages{};
  std::optional<Transformer> transformer{};
  std::vector<Level> levels{};        // finest first
  std::vector<FusionLevel> fusion{};  // finest first
  bool relu_skip = false;             // units add the ReLU of their input
  std::optional<DepthHead> depth{};
  std::optional<SegmentationHead> segmentation{};

  // v(name, part), v(name, parts) for a sequence, v(name, tensor) for a tensor, perhaps undefined.
  template <class Visitor>
  void visit(Visitor&& v) {
    if (stages) v("stages", *stages);
    if (transformer) v("transformer", *transformer);
    v("levels", levels);
    v("fusion", fusion);
    if (depth) v("depth", *depth);
    if (segmentation) v("segmentation", *segmentation);
  }
};

namespace detail {

// Calls f(name, part) for the parts of the type that f takes, Tensor or Product.
template <class F>
struct NetworkVisitor {
  F& f;
  std::string prefix;

  template <class Part>
  void operator()(const char* name, Part& part) const {
    if constexpr (std::is_invocable_v<F&, std::string, Part&>) {
      f(prefix + name, part);
    } else if constexpr (!std::is_same_v<Part, Tensor>) {
      part.visit(NetworkVisitor{f, prefix + name + "."});
    }
  }
  template <class Part>
  void operator()(const char* name, std::vector<Part>& parts) const {
    const NetworkVisitor each{f, prefix + name + "."};
    for (size_t i = 0; i < parts.size(); ++i) each(std::to_string(i).c_str(), parts[i]);
  }
};

}  // namespace detail

// Calls f(name, tensor) for each tensor, perhaps undefined.
template <class F>
void for_each_tensor(Network& network, F&& f) {
  network.visit(detail::NetworkVisitor<F>{f, ""});
}

// Calls f(name, product) for each product, perhaps undefined.
template <class F>
void for_each_product(Network& network, F&& f) {
  network.visit(detail::NetworkVisitor<F>{f, ""});
}

// The network of a model, rewritten. Values are computed in float64 and kept in the type of the
// model's tensors (half types: float32). On the meta device it has shapes alone.
DPT_API Network rewrite(const Model& model, const Rewrites& rewrites = {});

}  // namespace dpt::runtime
