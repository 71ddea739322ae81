#include "dpt/runtime/packed.h"

#include <ATen/Parallel.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <new>

#include "dpt/runtime/rewrites.h"

namespace dpt::runtime {

namespace {

constexpr size_t kAlignment = 64, kHugePage = size_t{1} << 21;

// A factor [n, k] of a matrix product.
void add_matrix(PackedProduct& packed, const Kernels& kernels, Precision precision,
                const Tensor& matrix) {
  const int64_t n = matrix.size(0), k = matrix.size(1);
  Buffer& buffer = packed.buffers.emplace_back(kernels.packed_bytes(precision, k, n));
  const Tensor rows = matrix.contiguous();
  kernels.pack(precision, rows.const_data_ptr<float>(), k, n, buffer.data());
  packed.weights.push_back({.precision = precision, .k = k, .n = n, .data = buffer.data()});
}

// Channels innermost, as in the maps: [n, c, kh, kw] to [n, kh * kw * c].
Tensor as_matrix(const Tensor& weight) { return weight.permute({0, 2, 3, 1}).flatten(1); }

std::shared_ptr<PackedProduct> packed(const Product& product, const Kernels& kernels) {
  auto packed = std::make_shared<PackedProduct>();
  for (int64_t i = 0; i < product.weight.size(2); ++i) {
    for (int64_t j = 0; j < product.weight.size(3); ++j) {
      packed->taps.push_back({.dy = static_cast<int32_t>(i - product.above),
                              .dx = static_cast<int32_t>(j - product.left)});
    }
  }
  packed->run = product.weight.size(1);
  for (const Tensor& group : product.weight.chunk(product.groups)) {
    add_matrix(*packed, kernels, product.precision, as_matrix(group));
  }
  return packed;
}

// [k / depth, n / columns, depth, columns] to [n, k].
Tensor rows_of(const Tensor& panels) {
  return panels.permute({1, 3, 0, 2}).reshape({panels.size(1) * panels.size(3), -1});
}

std::shared_ptr<PackedProduct> packed_panels(const Product& product, const Kernels& kernels) {
  auto packed = std::make_shared<PackedProduct>();
  packed->taps = {{0, 0}};
  packed->run = product.channels();
  const void* data = product.weight.const_data_ptr();
  if (kernels.reads_panels && reinterpret_cast<uintptr_t>(data) % kAlignment == 0) {
    packed->weights = {{.precision = Precision::kFloat32,
                        .k = product.channels(),
                        .n = product.n(),
                        .data = data}};
  } else {
    add_matrix(*packed, kernels, product.precision, rows_of(product.weight));
  }
  return packed;
}

// Of an image [B, 3, H, W] the rows of three planes, one below the other, are a map of one channel;
// a row of a patch is `kernel` of its pixels in a run.
std::shared_ptr<PackedProduct> packed_for_planes(const Product& product, const Kernels& kernels) {
  auto packed = std::make_shared<PackedProduct>();
  packed->run = product.weight.size(3);
  add_matrix(*packed, kernels, product.precision, product.weight.flatten(1));
  return packed;  // taps depend on the height
}

std::shared_ptr<PackedProduct> packed_winograd(const Product& product, const Kernels& kernels) {
  auto packed = std::make_shared<PackedProduct>();
  packed->winograd = true;
  packed->run = product.channels();
  Buffer& buffer =
      packed->buffers.emplace_back(kernels.winograd_bytes(product.channels(), product.n()));
  const Tensor weight = product.weight.contiguous();
  const WinogradWeights work{.weights = weight.const_data_ptr<float>(),
                             .channels = product.channels(),
                             .n = product.n(),
                             .packed = buffer.data()};
  kernels.winograd_pack.run(work, 0, kernels.winograd_pack.units(work), nullptr);
  return packed;
}

// The products of the nine taps, [9 * n, c]: number 3 * (dy + 1) + dx + 1 first.
std::shared_ptr<PackedProduct> packed_taps(const Product& product, const Kernels& kernels) {
  auto packed = std::make_shared<PackedProduct>();
  packed->taps = {{0, 0}};
  packed->run = product.channels();
  add_matrix(*packed, kernels, product.precision,
             product.weight.permute({2, 3, 0, 1}).reshape({-1, product.channels()}));
  return packed;
}

template <class F>
void for_each_block_product(Network& network, F&& f) {
  if (!network.transformer) return;
  for (Block& block : network.transformer->blocks) {
    for (Product* product : {&block.qkv, &block.proj, &block.fc1, &block.fc2}) f(*product);
  }
}

}  // namespace

Buffer::Buffer(size_t bytes) : size_((bytes + kAlignment - 1) / kAlignment * kAlignment) {
  const bool large = size_ >= kHugePage;
  void* data = nullptr;
  if (::posix_memalign(&data, large ? kHugePage : kAlignment, std::max(size_, kAlignment)) != 0) {
    throw std::bad_alloc();
  }
  data_.reset(data);
  if (large)
    ::madvise(data, size_, MADV_HUGEPAGE);  // advice: where there are none, nothing happens
}

void Buffer::Free::operator()(void* data) const { std::free(data); }

void to_panels(Network& network) {
  for_each_block_product(network, [](Product& product) {
    const int64_t n = product.n(), k = product.channels();
    if (product.in_panels || n % kPanelColumns != 0 || k % kPanelDepth != 0) return;
    const std::array<int64_t, 4> shape{k / kPanelDepth, n / kPanelColumns, kPanelDepth,
                                       kPanelColumns};
    const Tensor rows = product.weight.view({shape[1], shape[3], shape[0], shape[2]});
    product.in_panels = true;
    if (rows.is_meta()) {
      product.weight = shape_of(shape, at::kFloat);
      return;
    }
    const auto buffer = std::make_shared<Buffer>(n * k * sizeof(float));
    product.weight = at::from_blob(buffer->data(), shape, [buffer](void*) {}, at::kFloat);
    product.weight.copy_(rows.permute({2, 0, 3, 1}));
  });
}

void from_panels(Network& network) {
  for_each_block_product(network, [](Product& product) {
    if (!product.in_panels) return;
    product.weight = rows_of(product.weight).view({product.n(), product.channels(), 1, 1});
    product.in_panels = false;
  });
}

void pack(Network& network, const Kernels& kernels,
          const std::function<void(const Tensor&)>& done) {
  using Pack = std::shared_ptr<PackedProduct>(const Product&, const Kernels&);
  std::vector<std::pair<Pack*, Product*>> work;
  const auto pack_as = [&](Pack& form, Product& product) {
    if (product.defined() && !product.packed) work.emplace_back(&form, &product);
  };
  const auto plain = [&](Product& product) { pack_as(packed, product); };
  const auto planes = [&](Product& product) { pack_as(packed_for_planes, product); };
  const auto same_size = [&](Product& product) {  // 3x3 of stride 1
    const bool winograd = network.rewrites.winograd && product.precision == Precision::kFloat32 &&
                          !product.border.defined();
    pack_as(winograd ? packed_winograd : packed, product);
  };
  const auto resized = [&](Product& product) {
    if (network.rewrites.products_first) {
      pack_as(packed_taps, product);
    } else {
      same_size(product);
    }
  };

  if (network.stages) {
    planes(network.stages->stem.conv);
    for (auto& stage : network.stages->stages) {
      for (Bottleneck& block : stage) {
        plain(block.conv1.conv);
        const Product& middle = block.conv2.conv;
        if (middle.stride == 1 && middle.groups == 1) {
          same_size(block.conv2.conv);
        } else {
          plain(block.conv2.conv);
        }
        plain(block.conv3.conv);
        if (block.downsample) plain(block.downsample->conv);
      }
    }
  }
  if (network.transformer) {
    if (network.stages) {
      plain(network.transformer->patch_embed);
    } else {
      planes(network.transformer->patch_embed);
    }
    for_each_block_product(network, [&](Product& product) {
      pack_as(product.in_panels ? packed_panels : packed, product);
    });
  }
  for (Level& level : network.levels) {
    for (Product* product : {&level.read, &level.read_token}) plain(*product);
    if (level.project) plain(*level.project);
    if (level.down) plain(*level.down);
    same_size(level.input);
    for (Product& phase : level.phases) plain(phase);
  }
  for (FusionLevel& level : network.fusion) {
    if (level.unit1) {
      same_size(level.unit1->conv1);
      same_size(level.unit1->conv2);
    }
    same_size(level.unit2.conv1);
    same_size(level.unit2.conv2);
    if (level.project) plain(*level.project);
  }
  if (network.depth) {
    resized(network.depth->conv1);
    resized(network.depth->conv2);
  }
  if (network.segmentation) {
    resized(network.segmentation->conv);
    plain(network.segmentation->classify);
  }
  std::atomic<size_t> next = 0;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (size_t i; (i = next++) < work.size();) {
      const auto [form, product] = work[i];
      product->packed = form(*product, kernels);
      if (done && !product->packed->buffers.empty()) done(product->weight);
    }
  });
}

}  // namespace dpt::runtime
