// csrc/dpt/runtime/layers.h -- the layers of a packed network, on maps in an arena.
#pragma once

#include <ATen/ceil_div.h>

#include <algorithm>

#include "dpt/runtime/arena.h"
#include "dpt/runtime/execute.h"
#include "dpt/runtime/packed.h"

namespace dpt::runtime {

// [batch, height, width, channels], each image contiguous. Tokens are a map of height 1.
struct Map {
  float* data = nullptr;
  int64_t batch = 0, height = 0, width = 0, channels = 0;
  int64_t gap = 0;  // floats between images; less than zero where they overlap

  int64_t pixels() const { return height * width; }
  Strides strides() const {
    return {.image = pixels() * channels + gap, .row = width * channels, .pixel = channels};
  }
};

// How a map is read, and what happens to what is written.
struct Fused {
  Load load = Load::kPlain;
  const float* scale = nullptr;
  const float* shift = nullptr;
  float eps = 0;
  Activation activation = Activation::kNone;
  const float* bias = nullptr;  // instead of the product's
  const Map* add = nullptr;
  bool add_relu = false;
};

inline const float* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

struct Layers {
  const Kernels& kernels;
  Arena& arena;
  int threads;
  bool products_first;  // see Rewrites

  // --- work ---

  template <class Work>
  void execute(const Kernel<Work>& kernel, const Work& work) {
    const Arena::Scope scope(arena);
    runtime::execute(kernel, work, threads, [&](size_t bytes) { return arena.take(bytes); });
  }

  Map map(int64_t batch, int64_t height, int64_t width, int64_t channels) {
    return {arena.floats(batch * height * width * channels), batch, height, width, channels};
  }
  Map map_for(const Product& product, const Map& in) {
    return map(in.batch, at::ceil_div(in.height, product.stride),
               at::ceil_div(in.width, product.stride), product.n());
  }

  // --- layers ---

  // The border's biases where no row or column behind the last one of the input is read: then the
  // last pixels are as those before them.
  const float* border(const Product& product, int64_t height, int64_t width) {
    if (!product.border.defined()) return nullptr;
    const auto reads_behind = [&](int64_t size, int64_t kernel, int64_t before) {
      const int64_t last = (at::ceil_div(size, product.stride) - 1) * product.stride;
      return last - before + kernel > size;
    };
    const bool below = reads_behind(height, product.weight.size(2), product.above);
    const bool right = reads_behind(width, product.weight.size(3), product.left);
    if (below && right) return pointer(product.border);
    const int64_t n = product.n();
    float* border = arena.floats(16 * n);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 4; ++c) {
        const int64_t from = 4 * (below ? r : r & 1) + (right ? c : c & 1);
        std::copy_n(pointer(product.border) + from * n, n, border + (4 * r + c) * n);
      }
    }
    return border;
  }

  Convolution work_of(const Product& product, const Map& in, const Fused& fused) {
    const PackedProduct& packed = *product.packed;
    return {.in = in.data,
            .in_strides = in.strides(),
            .height = in.height,
            .width = in.width,
            .stride = product.stride,
            .taps = packed.taps.data(),
            .num_taps = static_cast<int64_t>(packed.taps.size()),
            .run = packed.run,
            .load = fused.load,
            .scale = fused.scale,
            .shift = fused.shift,
            .eps = fused.eps,
            .weights = packed.weights.empty() ? PackedMatrix{} : packed.weights[0],
            .batch = in.batch,
            .out_height = at::ceil_div(in.height, product.stride),
            .out_width = at::ceil_div(in.width, product.stride),
            .bias = fused.bias != nullptr ? fused.bias : pointer(product.bias),
            .activation = fused.activation,
            .add = fused.add != nullptr ? fused.add->data : nullptr,
            .add_strides = fused.add != nullptr ? fused.add->strides() : Strides{},
            .add_relu = fused.add_relu};
  }

  void convolve(const Product& product, const Map& in, const Map& out, const Fused& fused = {}) {
    const PackedProduct& packed = *product.packed;
    const Arena::Scope scope(arena);
    if (packed.winograd) {
      TORCH_INTERNAL_ASSERT(fused.load == Load::kPlain || fused.load == Load::kRelu);
      return execute(kernels.winograd,
                     {.in = in.data,
                      .in_strides = in.strides(),
                      .batch = in.batch,
                      .height = in.height,
                      .width = in.width,
                      .channels = in.channels,
                      .load_relu = fused.load == Load::kRelu,
                      .weights = packed.buffers[0].data(),
                      .n = product.n(),
                      .out = out.data,
                      .out_strides = out.strides(),
                      .bias = pointer(product.bias),
                      .relu = fused.activation == Activation::kRelu,
                      .add = fused.add != nullptr ? fused.add->data : nullptr,
                      .add_strides = fused.add != nullptr ? fused.add->strides() : Strides{},
                      .add_relu = fused.add_relu});
    }
    Convolution work = work_of(product, in, fused);
    work.out_strides = out.strides();
    const float* borders = border(product, in.height, in.width);
    const int64_t groups = product.groups, n = product.n() / groups;
    for (int64_t g = 0; g < groups; ++g) {
      Convolution part = work;
      const auto moved = [&](const float* p, int64_t by) { return p == nullptr ? p : p + g * by; };
      part.weights = packed.weights[g];
      part.in = in.data + g * packed.run;
      part.scale = moved(work.scale, packed.run);
      part.shift = moved(work.shift, packed.run);
      part.out = out.data + g * n;
      part.bias = moved(work.bias, n);
      part.add = moved(work.add, n);
      part.border = borders;  // groups have none
      execute(kernels.convolution, part);
    }
  }

  // A convolution whose kernel is read in rows from the planes of an image, padded with zeros.
  void convolve_planes(const Product& product, const Tensor& images, const Map& out,
                       const Map* add = nullptr) {
    const int64_t kh = product.weight.size(2), kw = product.weight.size(3), s = product.stride;
    const int64_t channels = images.size(1);
    int64_t height = images.size(2), width = images.size(3);
    const Arena::Scope scope(arena);
    const float* planes = images.const_data_ptr<float>();
    const int64_t padded_height = (out.height - 1) * s + kh;
    const int64_t padded_width = (out.width - 1) * s + kw;
    if (padded_height != height || padded_width != width) {
      planes = padded(images, product.above, product.left, padded_height, padded_width);
      height = padded_height;
      width = padded_width;
    }
    auto* taps = static_cast<Tap*>(arena.take(channels * kh * sizeof(Tap)));
    for (int64_t i = 0; i < channels * kh; ++i) {
      taps[i] = {.dy = static_cast<int32_t>(i / kh * height + i % kh), .dx = 0};
    }
    execute(kernels.convolution,
            {.in = planes,
             .in_strides = {.image = channels * height * width, .row = width, .pixel = 1},
             .height = channels * height,
             .width = width,
             .stride = s,
             .taps = taps,
             .num_taps = channels * kh,
             .run = kw,
             .weights = product.packed->weights[0],
             .batch = out.batch,
             .out_height = out.height,
             .out_width = out.width,
             .out = out.data,
             .out_strides = out.strides(),
             .bias = pointer(product.bias),
             .add = add != nullptr ? add->data : nullptr,
             .add_strides = add != nullptr ? add->strides() : Strides{}});
  }

  float* padded(const Tensor& images, int64_t above, int64_t left, int64_t height, int64_t width) {
    const int64_t planes = images.size(0) * images.size(1);
    const int64_t h = images.size(2), w = images.size(3);
    float* to = arena.floats(planes * height * width);
    std::fill_n(to, planes * height * width, 0.0f);
    const float* from = images.const_data_ptr<float>();
    for (int64_t p = 0; p < planes; ++p) {
      for (int64_t y = 0; y < h; ++y) {
        std::copy_n(from + (p * h + y) * w, w, to + (p * height + above + y) * width + left);
      }
    }
    return to;
  }

  Map through(const std::optional<Product>& product, const Map& x) {
    if (!product) return x;
    const Map out = map_for(*product, x);
    convolve(*product, x, out);
    return out;
  }

  // --- resized maps ---

  // `out` = `map` resized to its size, plus itself if `add`.
  void upsample(const Map& map, const Map& out, bool add, bool align_corners = true) {
    execute(kernels.upsample_add, {.in = map.data,
                                   .in_strides = map.strides(),
                                   .batch = map.batch,
                                   .height = map.height,
                                   .width = map.width,
                                   .channels = map.channels,
                                   .align_corners = align_corners,
                                   .out = out.data,
                                   .out_strides = out.strides(),
                                   .out_height = out.height,
                                   .out_width = out.width,
                                   .add = add ? out.data : nullptr,
                                   .add_strides = out.strides()});
  }

  // A 3x3 convolution of `x` resized to twice its size, on `out` as UpsampleGather says.
  void convolve_resized(const Product& product, const Map& x, bool align_corners,
                        UpsampleGather out) {
    const Arena::Scope scope(arena);
    const int64_t n = product.n();
    const Map products = map(x.batch, x.height, x.width, 9 * n);
    Convolution work = work_of(product, x, {});
    work.bias = nullptr;
    work.out = products.data;
    work.out_strides = products.strides();
    execute(kernels.convolution, work);
    out.in = products.data;
    out.in_strides = products.strides();
    out.batch = x.batch;
    out.height = x.height;
    out.width = x.width;
    out.channels = n;
    out.align_corners = align_corners;
    out.out_height = 2 * x.height;
    out.out_width = 2 * x.width;
    out.bias = pointer(product.bias);
    out.border = pointer(product.border);
    execute(kernels.upsample_gather, out);
  }

  // The same to a map of its own; `relu` afterwards.
  Map convolved_resized(const Product& product, const Map& x, bool align_corners, bool relu) {
    const Map out = map(x.batch, 2 * x.height, 2 * x.width, product.n());
    if (products_first) {
      convolve_resized(product, x, align_corners,
                       {.out = out.data, .out_strides = out.strides(), .relu = relu});
      return out;
    }
    const Arena::Scope scope(arena);
    const Map large = map(x.batch, out.height, out.width, x.channels);
    upsample(x, large, /*add=*/false, align_corners);
    convolve(product, large, out, {.activation = relu ? Activation::kRelu : Activation::kNone});
    return out;
  }
};

}  // namespace dpt::runtime
