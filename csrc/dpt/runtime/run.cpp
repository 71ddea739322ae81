#include "dpt/runtime/run.h"

#include <algorithm>
#include <chrono>

#include "dpt/runtime/layers.h"

namespace dpt::runtime {

namespace {

struct Runner : Layers {
  using Clock = std::chrono::steady_clock;

  const Network& network;
  const Geometry& geometry;
  Profile* profile;
  Output& output;        // for all images
  int64_t first, total;  // of the images in work, and of all
  Clock::time_point since = Clock::now();

  // The time since the last call was that part's.
  void count(double Profile::* part) {
    if (profile == nullptr) return;
    const Clock::time_point now = Clock::now();
    profile->*part += std::chrono::duration<double>(now - since).count();
    since = now;
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
    const int64_t batch = images.size(0), h = at::ceil_div(images.size(2), int64_t{2}),
                  w = at::ceil_div(images.size(3), int64_t{2}), n = stages.stem.conv.n();
    Map x = map(batch, at::ceil_div(h, int64_t{2}), at::ceil_div(w, int64_t{2}), n);
    {
      const Arena::Scope scope(arena);
      const Map stem = map(batch, h, w, n);
      convolve_planes(stages.stem.conv, images, stem);
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
        const Map out = map(batch, at::ceil_div(x.height, block.conv2.conv.stride),
                            at::ceil_div(x.width, block.conv2.conv.stride), block.conv3.conv.n());
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
      // Scores have no scale that would be found in time to round them to int8.
      const Precision precision = block.qkv.packed->weights[0].precision;
      execute(kernels.attention,
              {.precision = precision == Precision::kInt8 ? Precision::kBFloat16 : precision,
               .qkv = qkv.data,
               .batch = x.batch,
               .tokens = x.width,
               .heads = heads,
               .head_dim = x.channels / heads,
               .out = mixed.data});
      convolve(block.proj, mixed, x, {.add = &x});
    }
    count(&Profile::attention);
    const Arena::Scope scope(arena);
    const Map hidden = map_for(block.fc1, x);
    Fused gelu = norm;
    gelu.activation = Activation::kGelu;
    convolve(block.fc1, x, hidden, gelu);
    convolve(block.fc2, hidden, x, {.add = &x});
    count(&Profile::mlp);
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
    const Map patches{x.data + prefix * width, batch, h, w, width, prefix * width};
    // The same for all images.
    const Map position{geometry.pos_embed.data_ptr<float>(), batch, h, w, width, -h * w * width};
    if (map_in == nullptr) {
      convolve_planes(transformer.patch_embed, images, patches, &position);
    } else {
      convolve(transformer.patch_embed, *map_in, patches, {.add = &position});
    }
    return x;
  }

  // --- decoder ---

  // GELU(read(patch) + read_token(readout token)), [B, h, w, D].
  Map read(const Level& level, const Map& x, int64_t prefix, int64_t h, int64_t w) {
    const Map out = map(x.batch, h, w, x.channels);
    const Arena::Scope scope(arena);
    const int64_t d = x.channels, image = x.width * d;
    const Map token = map(x.batch, 1, 1, d);
    convolve(level.read_token, {x.data, x.batch, 1, 1, d, image - d}, token);
    for (int64_t b = 0; b < x.batch; ++b) {
      const Map patches{x.data + b * image + prefix * d, 1, h, w, d};
      const Map to{out.data + b * h * w * d, 1, h, w, d};
      convolve(level.read, patches, to,
               {.activation = Activation::kGelu, .bias = token.data + b * d});
    }
    return out;
  }

  // The patches of tokens, with the mean of the prefix tokens added if the level reads them so.
  Map patches(const Level& level, const Map& x, int64_t prefix, int64_t h, int64_t w) {
    const int64_t d = x.channels, count = h * w;
    const Map patches{x.data + prefix * d, x.batch, h, w, d, prefix * d};
    if (level.readout != ReadMode::kAdd) return patches;
    const Map out = map(x.batch, h, w, d);
    const Arena::Scope scope(arena);
    float* mean = arena.floats(d);
    for (int64_t b = 0; b < x.batch; ++b) {
      const float* tokens = x.data + b * x.width * d;
      float* to = out.data + b * count * d;
      for (int64_t c = 0; c < d; ++c) {
        mean[c] = 0;
        for (int64_t p = 0; p < prefix; ++p) mean[c] += tokens[p * d + c];
        mean[c] /= static_cast<float>(prefix);
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < d; ++c) to[i * d + c] = tokens[(prefix + i) * d + c] + mean[c];
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

  // A residual unit, in place.
  void residual(const Unit& unit, const Map& x) {
    const Arena::Scope scope(arena);
    const Map inner = map_for(unit.conv1, x);
    convolve(unit.conv1, x, inner, {.load = Load::kRelu, .activation = Activation::kRelu});
    convolve(unit.conv2, inner, x, {.add = &x, .add_relu = network.relu_skip});
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

  // What of a result belongs to the images in work.
  Tensor part_of(Tensor& result, std::vector<int64_t> sizes, int64_t batch) {
    sizes.insert(sizes.begin(), total);
    if (!result.defined()) result = at::empty(sizes, at::kFloat);
    return result.narrow(0, first, batch);
  }

  void depth(const DepthHead& head, const Map& fused) {
    const int64_t h = 4 * fused.height, w = 4 * fused.width;
    const Tensor result = part_of(output.depth, {h, w}, fused.batch);
    const Arena::Scope scope(arena);
    const Map x = convolved_resized(head.conv1, fused, /*align_corners=*/true, /*relu=*/false);
    const float dot_bias = *pointer(head.dot_bias);
    if (products_first) {
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
      return convolve_resized(head.conv2, x, head.align_corners, out);
    }
    const Map y = convolved_resized(head.conv2, x, head.align_corners, /*relu=*/true);
    const Tensor map = at::from_blob(y.data, {fused.batch, h, w, y.channels}, at::kFloat);
    Tensor values = (at::matmul(map, head.dot) + head.dot_bias).relu();
    if (head.inversion) {
      values =
          (values * head.inversion->scale + head.inversion->shift).clamp_min(1e-8).reciprocal();
    }
    result.copy_(values);
  }

  // Of [B, h, w, K].
  void logits(const SegmentationHead& head, const Map& fused) {
    const int64_t h = 4 * fused.height, w = 4 * fused.width, k = head.classify.n();
    const Tensor result = part_of(output.logits, {h, w, k}, fused.batch);
    const Arena::Scope scope(arena);
    const Map x = convolved_resized(head.conv, fused, /*align_corners=*/true, /*relu=*/true);
    const Map scores = map_for(head.classify, x);
    convolve(head.classify, x, scores);
    upsample(scores, {result.mutable_data_ptr<float>(), fused.batch, h, w, k}, /*add=*/false);
  }

  // --- the network ---

  void operator()(const Tensor& images) {
    const Config& config = network.config;
    const int64_t batch = images.size(0), height = images.size(2), width = images.size(3);
    std::vector<Map> maps(network.levels.size());
    const auto place = [&](size_t i, int64_t h, int64_t w) {
      maps[i] = map(batch, h, w, config.features);
    };
    std::vector<Map> stage_maps;
    if (network.stages) {
      stage_maps = stages(*network.stages, images);
      count(&Profile::stages);
    }
    for (size_t i = 0; i < maps.size(); ++i) {
      const Level& level = network.levels[i];
      if (!level.convolutional) continue;
      place(i, stage_maps[i].height, stage_maps[i].width);
      reassemble(level, stage_maps[i], 0, 0, 0, maps[i]);
    }
    count(&Profile::reassemble);
    if (network.transformer) {
      const Transformer& transformer = *network.transformer;
      const int64_t h = height / config.patch_size, w = width / config.patch_size;
      const int64_t prefix = transformer.prefix.size(0);
      for (size_t i = 0; i < maps.size(); ++i) {
        const Level& level = network.levels[i];
        if (level.convolutional) continue;
        const int64_t down = level.down ? level.down->stride : 1;
        place(i, at::ceil_div(h, down) * level.factor, at::ceil_div(w, down) * level.factor);
      }
      const Arena::Scope scope(arena);
      const Map x = embed(transformer, images, network.stages ? &stage_maps.back() : nullptr, h, w);
      count(&Profile::patch_embed);
      size_t next = 0;
      for (size_t i = maps.size() - transformer.taps.size(), block = 0; i < maps.size(); ++block) {
        transform(transformer.blocks[block], transformer.heads, static_cast<float>(transformer.eps),
                  x);
        if (static_cast<int64_t>(block) == transformer.taps[next]) {
          reassemble(network.levels[i], x, prefix, h, w, maps[i]);
          count(&Profile::reassemble);
          ++i;
          ++next;
        }
      }
    }
    const Map fused = fuse(maps);
    count(&Profile::fusion);
    if (network.depth) depth(*network.depth, fused);
    if (network.segmentation) logits(*network.segmentation, fused);
    count(&Profile::head);
  }
};

// Of a batch, how many images go through the network together: enough for each thread to have work,
// and no more, so that their maps stay in the caches.
int64_t together(const Tensor& images, int threads) {
  constexpr int64_t kPixelsPerThread = 384 * 384 / 2;
  const int64_t pixels = std::max<int64_t>(images.size(2) * images.size(3), 1);
  return std::max<int64_t>(threads * kPixelsPerThread / pixels, 1);
}

}  // namespace

Output run(const Network& network, const Kernels& kernels, const Geometry& geometry, Arena& arena,
           int threads, const Tensor& images, Profile* profile) {
  Output output;
  const int64_t total = images.size(0), count = together(images, threads);
  for (int64_t first = 0; first == 0 || first < total; first += count) {
    const Arena::Scope scope(arena);
    Runner runner{{kernels, arena, threads, network.rewrites.products_first},
                  network,
                  geometry,
                  profile,
                  output,
                  first,
                  total};
    runner(images.narrow(0, first, std::min(count, total - first)));
  }
  if (output.logits.defined()) output.logits = output.logits.permute({0, 3, 1, 2});
  return output;
}

}  // namespace dpt::runtime
