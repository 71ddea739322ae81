// csrc/dpt/layers.h -- the layers of the network as plain values.
//
// A layer is a struct of tensor handles: operator() is its forward pass, and visit names its
// tensors. visit(v) calls
//   v(name, part)          for each part that has tensors of its own, and
//   v(name, tensor, info)  for each tensor, with its shape, first values and role,
// always in one order, the order in which tensors cross to Python and into files. A layer that was
// only constructed knows its shapes and has no tensors yet: bind() and initialize() give it some.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dpt/common.h"

namespace dpt {

// How a tensor gets its first values.
struct DPT_API Init {
  enum class Kind { kConstant, kNormal, kUniform };
  Kind kind = Kind::kConstant;
  double value = 0;  // the constant, the standard deviation, or the bound of a symmetric interval

  static Init constant(double value) { return {Kind::kConstant, value}; }
  static Init normal(double deviation) { return {Kind::kNormal, deviation}; }
  // PyTorch's default of linear and convolution layers: U(-b, b) with b = 1 / sqrt(fan_in).
  static Init fan_in(int64_t fan_in);
};

enum class Role { kParameter, kBuffer };

struct DPT_API TensorInfo {
  c10::SmallVector<int64_t, 4> shape;
  Init init;
  Role role = Role::kParameter;
  at::ScalarType dtype = at::kFloat;
};

// [..., in] -> [..., out].
struct DPT_API Linear {
  int64_t in = 0, out = 0;
  bool has_bias = true;
  // Transformer layers start from a normal distribution (ViT), all others from PyTorch's default.
  bool normal_init = false;
  Tensor weight{}, bias{};

  Tensor operator()(const Tensor& x) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("weight", weight, TensorInfo{{out, in}, normal_init ? Init::normal(0.02) : Init::fan_in(in)});
    if (has_bias) {
      v("bias", bias, TensorInfo{{out}, normal_init ? Init::constant(0) : Init::fan_in(in)});
    }
  }
};

// [B, in, H, W] -> [B, out, ceil(H/stride), ceil(W/stride)] with padding kernel / 2 (patch
// embedding: none).
struct DPT_API Conv2d {
  int64_t in = 0, out = 0, kernel = 1, stride = 1, padding = 0;
  bool has_bias = true;
  int64_t groups = 1;
  std::optional<double> initial_bias{};  // instead of PyTorch's default
  Tensor weight{}, bias{};

  Tensor operator()(const Tensor& x) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    const Init init = Init::fan_in(in / groups * kernel * kernel);
    v("weight", weight, TensorInfo{{out, in / groups, kernel, kernel}, init});
    if (has_bias) {
      v("bias", bias, TensorInfo{{out}, initial_bias ? Init::constant(*initial_bias) : init});
    }
  }
};

// [B, channels, H, W] -> [B, channels, factor * H, factor * W]; kernel = stride, so no pixel is
// written twice.
struct DPT_API ConvTranspose2d {
  int64_t channels = 0, factor = 1;
  Tensor weight{}, bias{};

  Tensor operator()(const Tensor& x) const {
    return at::conv_transpose2d(x, weight, bias, {factor, factor}, {0, 0}, {0, 0}, 1, {1, 1});
  }

  template <class Visitor>
  void visit(Visitor&& v) {
    const Init init = Init::fan_in(channels * factor * factor);
    v("weight", weight, TensorInfo{{channels, channels, factor, factor}, init});
    v("bias", bias, TensorInfo{{channels}, init});
  }
};

// Over the last dimension.
struct DPT_API LayerNorm {
  int64_t width = 0;
  double eps = 1e-6;
  Tensor weight{}, bias{};

  Tensor operator()(const Tensor& x) const {
    return at::layer_norm_symint(x, {c10::SymInt(width)}, weight, bias, eps);
  }

  template <class Visitor>
  void visit(Visitor&& v) {
    v("weight", weight, TensorInfo{{width}, Init::constant(1)});
    v("bias", bias, TensorInfo{{width}, Init::constant(0)});
  }
};

// [B, channels, H, W], normalised over `groups` groups of channels of each image.
struct DPT_API GroupNorm {
  int64_t channels = 0, groups = 32;
  Tensor weight{}, bias{};

  Tensor operator()(const Tensor& x) const {
    return at::group_norm(x, groups, weight, bias, /*eps=*/1e-5);
  }

  template <class Visitor>
  void visit(Visitor&& v) {
    v("weight", weight, TensorInfo{{channels}, Init::constant(1)});
    v("bias", bias, TensorInfo{{channels}, Init::constant(0)});
  }
};

// [B, channels, H, W]. In training the running statistics change in place, and those of the batch
// are taken over all processes of `process_group`, if it names one.
struct DPT_API BatchNorm2d {
  int64_t channels = 0;
  std::string process_group{};
  Tensor weight{}, bias{}, running_mean{}, running_var{}, num_batches_tracked{};

  Tensor operator()(const Tensor& x, bool training) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    const auto buffer = [&](double value) {
      return TensorInfo{{channels}, Init::constant(value), Role::kBuffer};
    };
    v("weight", weight, TensorInfo{{channels}, Init::constant(1)});
    v("bias", bias, TensorInfo{{channels}, Init::constant(0)});
    v("running_mean", running_mean, buffer(0));
    v("running_var", running_var, buffer(1));
    v("num_batches_tracked", num_batches_tracked,
      TensorInfo{{}, Init::constant(0), Role::kBuffer, at::kLong});
  }
};

// Visits the parts of a sequence as "0", "1", ...
template <class Parts, class Visitor>
void visit_each(Parts& parts, Visitor&& v) {
  for (size_t i = 0; i < parts.size(); ++i) v(std::to_string(i), parts[i]);
}

namespace detail {

// Calls f with the names that visit gives, joined by dots behind a prefix.
template <class F>
struct NamingVisitor {
  F& f;
  std::string prefix;

  template <class Part>
  void operator()(const std::string& name, Part& part) {
    part.visit(NamingVisitor{f, prefix + name + "."});
  }
  void operator()(const char* name, Tensor& tensor, const TensorInfo& info) {
    f(prefix + name, tensor, info);
  }
};

struct BindingVisitor {
  at::TensorList parameters, buffers;
  size_t next_parameter = 0, next_buffer = 0;

  template <class Part>
  void operator()(const std::string&, Part& part) {
    part.visit(*this);
  }
  void operator()(const char*, Tensor& tensor, const TensorInfo& info) {
    const bool buffer = info.role == Role::kBuffer;
    const at::TensorList& from = buffer ? buffers : parameters;
    size_t& next = buffer ? next_buffer : next_parameter;
    if (next < from.size()) tensor = from[next];
    ++next;
  }
};

}  // namespace detail

// Calls f(name, tensor, info) for each tensor of a layer, stage or model; names are joined by dots
// behind `prefix`.
template <class Part, class F>
void for_each_tensor(Part& part, F&& f, std::string prefix = "") {
  part.visit(detail::NamingVisitor<F>{f, std::move(prefix)});
}

// Gives a layer, stage or model its tensors, in the order of visit. `function` is named in the
// error.
template <class Part>
void bind(Part& part, at::TensorList parameters, at::TensorList buffers, const char* function) {
  detail::BindingVisitor binding{parameters, buffers};
  part.visit(binding);
  TORCH_CHECK_VALUE(
      binding.next_parameter == parameters.size() && binding.next_buffer == buffers.size(),
      function, ": this config has ", binding.next_parameter, " parameters and ",
      binding.next_buffer, " buffers, got ", parameters.size(), " and ", buffers.size(),
      "; pass the tensors in the order of the config's spec");
}

// Gives a tensor its first values. Random ones come from the default generator of the CPU, so
// torch.manual_seed decides them, and they are the same on every device.
DPT_API Tensor make_initial(const TensorInfo& info);

// Allocates and initialises every tensor on the CPU; parameters require gradients.
template <class Part>
void initialize(Part& part) {
  for_each_tensor(part, [](const std::string&, Tensor& tensor, const TensorInfo& info) {
    tensor = make_initial(info);
    if (info.role == Role::kParameter) tensor.set_requires_grad(true);
  });
}

}  // namespace dpt
