#include "dpt/runtime/calibration.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace dpt::runtime {

namespace {

// A layer that may be int8, packed both ways.
struct Layer {
  std::string name;
  Product* product;
  Precision precision{};  // that it has if not int8
  std::shared_ptr<const PackedProduct> wide{}, narrow{};
  double error = 0;  // that it brings alone, on the worst image

  void use_int8() const {
    product->precision = Precision::kInt8;
    product->packed = narrow;
  }
  void fall_back() const {
    product->precision = precision;
    product->packed = wide;
  }
};

// Mean absolute difference over the range of what is wanted, of the output where it is larger.
double error_of(const Output& got, const Output& want) {
  double worst = 0;
  for (const auto& [a, b] : {std::pair{got.depth, want.depth}, {got.logits, want.logits}}) {
    if (!b.defined()) continue;
    const double difference = (a - b).abs().mean(at::kDouble).item<double>();
    const double range = (b.max() - b.min()).item<double>();
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    if (difference > 0) worst = std::max(worst, difference / range);
  }
  return worst;
}

}  // namespace

std::vector<std::string> pack_calibrated(Network& network, const Kernels& kernels,
                                         size_t num_images,
                                         const std::function<Output(size_t)>& predict) {
  pack(network, kernels);
  std::vector<Output> wanted;
  for (size_t i = 0; i < num_images; ++i) {
    const Output& output = wanted.emplace_back(predict(i));
    for (const Tensor& tensor : {output.depth, output.logits}) {
      TORCH_CHECK_VALUE(!tensor.defined() || at::isfinite(tensor).all().item<bool>(),
                        "freeze: the model predicts numbers that are not finite for image ", i,
                        " of the calibration images, in float32");
    }
  }
  const auto error = [&](size_t i) { return error_of(predict(i), wanted[i]); };
  std::vector<double> errors(num_images);
  const auto mean_error = [&] {
    for (size_t i = 0; i < num_images; ++i) errors[i] = error(i);
    return std::accumulate(errors.begin(), errors.end(), 0.0) / static_cast<double>(num_images);
  };

  std::vector<Layer> layers;
  for_each_product(network, [&](const std::string& name, Product& product) {
    if (!product.defined()) return;
    const PackedProduct& packed = *product.packed;
    const size_t taps = packed.winograd ? 9 : packed.taps.size();  // of an image's planes 0
    const bool may_be_int8 =
        product.groups == 1 && (taps == 1 || (taps > 1 && kernels.int8_beats_winograd));
    if (may_be_int8) layers.push_back({.name = name, .product = &product});
    if (kernels.beside_int8 == product.precision) return;
    product.precision = kernels.beside_int8;
    product.packed.reset();
  });
  pack(network, kernels);
  for (Layer& layer : layers) {
    layer.precision = layer.product->precision;
    layer.wide = std::move(layer.product->packed);
    layer.product->precision = Precision::kInt8;
  }
  pack(network, kernels);
  for (Layer& layer : layers) layer.narrow = layer.product->packed;

  std::vector<std::string> fallbacks;
  double total = mean_error();
  if (total <= kInt8Error) return fallbacks;
  const auto worst = static_cast<size_t>(std::ranges::max_element(errors) - errors.begin());
  for (const Layer& layer : layers) layer.fall_back();
  for (Layer& layer : layers) {
    layer.use_int8();
    layer.error = error(worst);
    layer.fall_back();
  }
  for (const Layer& layer : layers) layer.use_int8();
  std::ranges::stable_sort(layers, std::ranges::greater{}, &Layer::error);
  for (const Layer& layer : layers) {
    if (total <= kInt8Error) break;
    layer.fall_back();
    fallbacks.push_back(layer.name);
    total = mean_error();
  }
  return fallbacks;
}

}  // namespace dpt::runtime
