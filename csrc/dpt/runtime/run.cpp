#include "dpt/runtime/run.h"

#include <algorithm>

#include "dpt/runtime/packed.h"

namespace dpt::runtime {

namespace {

// [batch, height, width, channels], each image contiguous. Tokens are a map of height 1.
struct Map {
  float* data = nullptr;
  int64_t batch = 0, height = 0, width = 0, channels = 0;
  int64_t gap = 0;  // floats between images

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

const float* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Runner {
  const Network& network;
  const Kernels& kernels;
  const Geometry& geometry;
  Arena& arena;
  int threads;

  // --- work ---

  template <class Work>
  void execute(const Kernel<Work>& kernel, const Work& work) {
    const int64_t units = kernel.units(work);
    if (units == 0) return;
    const int count = static_cast<int>(std::min<int64_t>(threads, units));
    const size_t bytes = (kernel.scratch(work) + 63) / 64 * 64;
    const Arena::Scope scope(arena);
    char* scratch = static_cast<char*>(arena.take(bytes * count));
#pragma omp parallel for num_threads(count) schedule(static, 1) if (count > 1)
    for (int i = 0; i < count; ++i) {
      kernel.run(work, units * i / count, units * (i + 1) / count, scratch + bytes * i);
    }
  }

  Map map(int64_t batch, int64_t height, int64_t width, int64_t channels) {
    return {arena.floats(batch * height * width * channels), batch, height, width, channels};
  }
  Map map_for(const Product& product, const Map& in) {
    return map(in.batch, ceil_divide(in.height, product.stride),
               ceil_divide(in.width, product.stride), product.n());
  }

  // --- layers ---

  // The border's biases where no row or column behind the last one of the input is read: then the
  // last pixels are as those before them.
  const float* border(const Product& product, int64_t height, int64_t width) {
    if (!product.border.defined()) return nullptr;
    const auto reads_behind = [&](int64_t size, int64_t kernel, int64_t before) {
      const int64_t last = (ceil_divide(size, product.stride) - 1) * product.stride;
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
            .out_height = ceil_divide(in.height, product.stride),
            .out_width = ceil_divide(in.width, product.stride),
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
  Map convolve_planes(const Product& product, const Tensor& images, float* out = nullptr,
                      const Strides* out_strides = nullptr, const float* add = nullptr) {
    const int64_t kh = product.weight.size(2), kw = product.weight.size(3), s = product.stride;
    const int64_t batch = images.size(0), channels = images.size(1);
    int64_t height = images.size(2), width = images.size(3);
    const int64_t h = ceil_divide(height, s), w = ceil_divide(width, s);
    const Map made = out == nullptr ? map(batch, h, w, product.n()) : Map{};
    const Arena::Scope scope(arena);
    const float* planes = images.const_data_ptr<float>();
    const int64_t padded_height = (h - 1) * s + kh, padded_width = (w - 1) * s + kw;
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
             .batch = batch,
             .out_height = h,
             .out_width = w,
             .out = out == nullptr ? made.data : out,
             .out_strides = out == nullptr ? made.strides() : *out_strides,
             .bias = pointer(product.bias),
             .add = add,
             .add_strides = {.image = 0, .row = w * product.n(), .pixel = product.n()}});
    return made;
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

  // --- convolutional stages ---

  struct Statistics {
    const float* scale = nullptr;
    const float* shift = nullptr;
  };

  Statistics statistics(const NormedProduct& product, const Map& map) {
    if (product.norm_groups == 0) return {};
    const int64_t count = map.batch * map.channels;
    float *scale = arena.floats(count), *shift = arena.floats(count);
    execute(kernels.group_statistics, {.in = map.data,
                                       .in_strides = map.strides(),
                                       .batch = map.batch,
                                       .height = map.height,
                                       .width = map.width,
                                       .channels = map.channels,
                                       .groups = product.norm_groups,
                                       .weight = pointer(product.weight),
                                       .bias = pointer(product.bias),
                                       .eps = 1e-5f,
                                       .scale = scale,
                                       .shift = shift});
    return {scale, shift};
  }

  // relu(map * scale + shift + add * add_scale + add_shift), in place.
  void finish(const Map& map, const Statistics& own, const float* add, const Statistics& other) {
    execute(kernels.affine_add_relu, {.in = map.data,
                                      .scale = own.scale,
                                      .shift = own.shift,
                                      .add = add,
                                      .add_scale = other.scale,
                                      .add_shift = other.shift,
                                      .batch = map.batch,
                                      .pixels = map.pixels(),
                                      .channels = map.channels,
                                      .out = map.data});
  }

  void bottleneck(const Bottleneck& block, const Map& x, const Map& out) {
    const Arena::Scope scope(arena);
    const bool folded = block.conv1.norm_groups == 0;
    const Fused relu{.activation = folded ? Activation::kRelu : Activation::kNone};
    const Map first = map_for(block.conv1.conv, x);
    convolve(block.conv1.conv, x, first, relu);
    if (!folded) finish(first, statistics(block.conv1, first), nullptr, {});
    const Map second = map_for(block.conv2.conv, first);
    convolve(block.conv2.conv, first, second, relu);
    const Statistics of_second = statistics(block.conv2, second);
    convolve(block.conv3.conv, second, out,
             {.load = folded ? Load::kPlain : Load::kAffineRelu,
              .scale = of_second.scale,
              .shift = of_second.shift});
    const Statistics own = statistics(block.conv3, out);
    if (!block.downsample) return finish(out, own, x.data, {});
    const Map skip = map_for(block.downsample->conv, x);
    convolve(block.downsample->conv, x, skip);
    finish(out, own, skip.data, statistics(*block.downsample, skip));
  }

  // The maps of all stages; they stay in the arena.
  std::vector<Map> stages(const Stages& stages, const Tensor& images) {
    const int64_t batch = images.size(0), h = ceil_divide(images.size(2), 2),
                  w = ceil_divide(images.size(3), 2), n = stages.stem.conv.n();
    Map x = map(batch, ceil_divide(h, 2), ceil_divide(w, 2), n);
    {
      const Arena::Scope scope(arena);
      const Map stem = convolve_planes(stages.stem.conv, images);
      const Statistics norm = statistics(stages.stem, stem);
      if (stages.stem.norm_groups == 0) finish(stem, {}, nullptr, {});
      execute(kernels.max_pool, {.in = stem.data,
                                 .batch = batch,
                                 .height = h,
                                 .width = w,
                                 .channels = n,
                                 .before = stages.zero_padded_pool ? 0 : 1,
                                 .zeros = stages.zero_padded_pool,
                                 .scale = norm.scale,
                                 .shift = norm.shift,
                                 .out = x.data,
                                 .out_height = x.height,
                                 .out_width = x.width});
    }
    std::vector<Map> maps;
    for (const auto& stage : stages.stages) {
      for (const Bottleneck& block : stage) {
        const Map out = map(batch, ceil_divide(x.height, block.conv2.conv.stride),
                            ceil_divide(x.width, block.conv2.conv.stride), block.conv3.conv.n());
        bottleneck(block, x, out);
        x = out;
      }
      maps.push_back(x);
    }
    return maps;
  }

  // --- transformer ---

  void transform(const Block& block, int64_t heads, float eps, const Map& x) {
    const Fused norm{.load = Load::kLayerNorm, .eps = eps};
    {
      const Arena::Scope scope(arena);
      const Map qkv = map_for(block.qkv, x);
      convolve(block.qkv, x, qkv, norm);
      const Map mixed = map(x.batch, 1, x.width, x.channels);
      execute(kernels.attention, {.precision = block.qkv.packed->weights[0].precision,
                                  .qkv = qkv.data,
                                  .batch = x.batch,
                                  .tokens = x.width,
                                  .heads = heads,
                                  .head_dim = x.channels / heads,
                                  .out = mixed.data});
      convolve(block.proj, mixed, x, {.add = &x});
    }
    const Arena::Scope scope(arena);
    const Map hidden = map_for(block.fc1, x);
    Fused gelu = norm;
    gelu.activation = Activation::kGelu;
    convolve(block.fc1, x, hidden, gelu);
    convolve(block.fc2, hidden, x, {.add = &x});
  }

  // Tokens [B, P + h * w, D].
  Map embed(const Transformer& transformer, const Tensor& images, const Map* map_in, int64_t h,
            int64_t w) {
    const int64_t batch = images.size(0), prefix = transformer.prefix.size(0),
                  width = transformer.prefix.size(1), tokens = prefix + h * w;
    const Map x = map(batch, 1, tokens, width);
    for (int64_t b = 0; b < batch; ++b) {
      std::copy_n(pointer(transformer.prefix), prefix * width, x.data + b * tokens * width);
    }
    float* patches = x.data + prefix * width;
    const Strides strides{.image = tokens * width, .row = w * width, .pixel = width};
    const float* position = pointer(geometry.pos_embed);
    if (map_in == nullptr) {
      convolve_planes(transformer.patch_embed, images, patches, &strides, position);
      return x;
    }
    Convolution work = work_of(transformer.patch_embed, *map_in, {});
    work.out = patches;
    work.out_strides = strides;
    work.add = position;
    work.add_strides = {.image = 0, .row = w * width, .pixel = width};
    execute(kernels.convolution, work);
    return x;
  }

  // --- decoder ---

  // GELU(read(patch) + read_token(readout token)), [B, h, w, D].
  Map read(const Level& level, const Map& x, int64_t prefix, int64_t h, int64_t w) {
    const Map out = map(x.batch, h, w, x.channels);
    const Arena::Scope scope(arena);
    const int64_t image = x.width * x.channels;
    const Map token = map(x.batch, 1, 1, x.channels);
    Convolution work = work_of(level.read_token, {x.data, x.batch, 1, 1, x.channels}, {});
    work.in_strides.image = image;
    work.out = token.data;
    work.out_strides = token.strides();
    execute(kernels.convolution, work);
    for (int64_t b = 0; b < x.batch; ++b) {
      const Map patches{x.data + b * image + prefix * x.channels, 1, h, w, x.channels};
      const Map to{out.data + b * h * w * x.channels, 1, h, w, x.channels};
      convolve(level.read, patches, to,
               {.activation = Activation::kGelu, .bias = token.data + b * x.channels});
    }
    return out;
  }

  // The patches of tokens, with the mean of the prefix tokens added if the level reads them so.
  Map patches(const Level& level, const Map& x, int64_t prefix, int64_t h, int64_t w) {
    const int64_t d = x.channels, count = h * w;
    const Map patches{x.data + prefix * d, x.batch, h, w, d, prefix * d};
    if (level.readout != ReadMode::kAdd) return patches;
    const Map out = map(x.batch, h, w, d);
    for (int64_t b = 0; b < x.batch; ++b) {
      const float* tokens = x.data + b * x.width * d;
      float* to = out.data + b * count * d;
      for (int64_t c = 0; c < d; ++c) {
        float mean = 0;
        for (int64_t p = 0; p < prefix; ++p) mean += tokens[p * d + c];
        mean /= static_cast<float>(prefix);
        for (int64_t i = 0; i < count; ++i) to[i * d + c] = tokens[(prefix + i) * d + c] + mean;
      }
    }
    return out;
  }

  // The transposed convolution, where it has not become phases; of a contiguous map.
  Map upsampled(const Level& level, const Map& x) {
    const int64_t s = level.factor;
    const Map out = map(x.batch, x.height * s, x.width * s, x.channels);
    const Tensor in = at::from_blob(x.data, {x.batch, x.height, x.width, x.channels}, at::kFloat);
    const Tensor result =
        at::conv_transpose2d(in.permute({0, 3, 1, 2}), level.up, level.up_bias, {s, s});
    const Tensor to =
        at::from_blob(out.data, {x.batch, out.height, out.width, x.channels}, at::kFloat);
    to.copy_(result.permute({0, 2, 3, 1}));
    return out;
  }

  // What fusion adds at this level, written to `out` [B, C, ...].
  void reassemble(const Level& level, Map x, int64_t prefix, int64_t h, int64_t w, const Map& out) {
    const Arena::Scope scope(arena);
    if (!level.convolutional) {
      x = level.readout == ReadMode::kProject ? read(level, x, prefix, h, w)
                                              : patches(level, x, prefix, h, w);
      x = through(level.project, x);
      x = through(level.down, x);
      if (level.up.defined()) x = upsampled(level, x);
    }
    if (level.phases.empty()) return convolve(level.input, x, out);
    const int64_t s = level.factor;
    for (int64_t p = 0; p < s; ++p) {
      for (int64_t q = 0; q < s; ++q) {
        const Product& phase = level.phases[s * p + q];
        const Strides full = out.strides();
        Convolution work = work_of(phase, x, {});
        work.border = border(phase, x.height, x.width);
        work.out = out.data + p * full.row + q * full.pixel;
        work.out_strides = {.image = full.image, .row = s * full.row, .pixel = s * full.pixel};
        execute(kernels.convolution, work);
      }
    }
  }

  Map through(const std::optional<Product>& product, const Map& x) {
    if (!product) return x;
    const Map out = map_for(*product, x);
    convolve(*product, x, out);
    return out;
  }

  // A residual unit, in place.
  void residual(const Unit& unit, const Map& x) {
    const Arena::Scope scope(arena);
    const Map inner = map_for(unit.conv1, x);
    convolve(unit.conv1, x, inner, {.load = Load::kRelu, .activation = Activation::kRelu});
    convolve(unit.conv2, inner, x, {.add = &x, .add_relu = network.relu_skip});
  }

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

  // From the maps of all levels, finest first, which change, to the fused map before it is resized.
  Map fuse(const std::vector<Map>& maps) {
    Map below;
    for (size_t i = maps.size(); i-- > 0;) {
      const FusionLevel& level = network.fusion[i];
      if (level.unit1) {
        residual(*level.unit1, maps[i]);
        upsample(below, maps[i], /*add=*/true);
      }
      residual(level.unit2, maps[i]);
      below = through(level.project, maps[i]);
    }
    return below;
  }

  // --- heads ---

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
    if (network.rewrites.products_first) {
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

  Tensor depth(const DepthHead& head, const Map& fused) {
    const int64_t h = 4 * fused.height, w = 4 * fused.width;
    const Tensor result = at::empty({fused.batch, h, w}, at::kFloat);
    const Arena::Scope scope(arena);
    const Map x = convolved_resized(head.conv1, fused, /*align_corners=*/true, /*relu=*/false);
    const float dot_bias = *pointer(head.dot_bias);
    if (network.rewrites.products_first) {
      UpsampleGather out{.out = result.mutable_data_ptr<float>(),
                         .out_strides = {.image = h * w, .row = w, .pixel = 1},
                         .relu = true,
                         .dot = pointer(head.dot),
                         .dot_bias = dot_bias,
                         .invert = head.inversion.has_value()};
      if (head.inversion) {
        out.invert_scale = static_cast<float>(head.inversion->scale);
        out.invert_shift = static_cast<float>(head.inversion->shift);
      }
      convolve_resized(head.conv2, x, head.align_corners, out);
      return result;
    }
    const Map y = convolved_resized(head.conv2, x, head.align_corners, /*relu=*/true);
    const Tensor map = at::from_blob(y.data, {fused.batch, h, w, y.channels}, at::kFloat);
    Tensor values = (at::matmul(map, head.dot) + head.dot_bias).relu();
    if (head.inversion) {
      values =
          (values * head.inversion->scale + head.inversion->shift).clamp_min(1e-8).reciprocal();
    }
    return result.copy_(values);
  }

  Tensor logits(const SegmentationHead& head, const Map& fused) {
    const int64_t h = 4 * fused.height, w = 4 * fused.width, k = head.classify.n();
    const Tensor result = at::empty({fused.batch, h, w, k}, at::kFloat);
    const Arena::Scope scope(arena);
    const Map x = convolved_resized(head.conv, fused, /*align_corners=*/true, /*relu=*/true);
    const Map scores = map_for(head.classify, x);
    convolve(head.classify, x, scores);
    upsample(scores, {result.mutable_data_ptr<float>(), fused.batch, h, w, k}, /*add=*/false);
    return result.permute({0, 3, 1, 2});
  }

  // --- the network ---

  Output operator()(const Tensor& images) {
    const Config& config = network.config;
    const int64_t batch = images.size(0), height = images.size(2), width = images.size(3);
    std::vector<Map> maps(network.levels.size());
    const auto place = [&](size_t i, int64_t h, int64_t w) {
      maps[i] = map(batch, h, w, config.features);
    };
    std::vector<Map> stage_maps;
    if (network.stages) stage_maps = stages(*network.stages, images);
    for (size_t i = 0; i < maps.size(); ++i) {
      const Level& level = network.levels[i];
      if (!level.convolutional) continue;
      place(i, stage_maps[i].height, stage_maps[i].width);
      reassemble(level, stage_maps[i], 0, 0, 0, maps[i]);
    }
    if (network.transformer) {
      const Transformer& transformer = *network.transformer;
      const int64_t h = height / config.patch_size, w = width / config.patch_size;
      const int64_t prefix = transformer.prefix.size(0);
      for (size_t i = 0; i < maps.size(); ++i) {
        const Level& level = network.levels[i];
        if (level.convolutional) continue;
        const int64_t down = level.down ? level.down->stride : 1;
        place(i, ceil_divide(h, down) * level.factor, ceil_divide(w, down) * level.factor);
      }
      const Arena::Scope scope(arena);
      const Map x = embed(transformer, images, network.stages ? &stage_maps.back() : nullptr, h, w);
      size_t next = 0;
      for (size_t i = maps.size() - transformer.taps.size(), block = 0; i < maps.size(); ++block) {
        transform(transformer.blocks[block], transformer.heads, static_cast<float>(transformer.eps),
                  x);
        if (static_cast<int64_t>(block) == transformer.taps[next]) {
          reassemble(network.levels[i], x, prefix, h, w, maps[i]);
          ++i;
          ++next;
        }
      }
    }
    const Map fused = fuse(maps);
    Output output;
    if (network.depth) output.depth = depth(*network.depth, fused);
    if (network.segmentation) output.logits = logits(*network.segmentation, fused);
    return output;
  }
};

}  // namespace

Output run(const Network& network, const Kernels& kernels, const Geometry& geometry, Arena& arena,
           int threads, const Tensor& images) {
  Runner runner{network, kernels, geometry, arena, threads};
  return runner(images);
}

}  // namespace dpt::runtime
