// csrc/dpt/runtime/rewrites.h -- the exact rewrites: from layers to layers that give the same
// numbers with fewer products. Tensors are float64.
//
// Source: linear algebra; Ranftl et al. 2021 and its published code have none of them.
#pragma once

#include "dpt/runtime/network.h"

namespace dpt::runtime {

// A tensor that is nothing but its shape.
inline Tensor shape_of(at::IntArrayRef sizes, at::ScalarType dtype = at::kDouble) {
  return at::empty(sizes, at::TensorOptions(at::kMeta).dtype(dtype));
}

// Batch normalisation with its running statistics, in the convolution before it.
DPT_API Product fold_norm(Product conv, const BatchNorm2d& norm);

// A layer normalisation's gain and shift, in the linear layer behind it.
DPT_API Product fold_norm(const LayerNorm& norm, Product linear);

// The scale of the scores in the queries, the bias of the values in proj; keys need no bias, since
// softmax takes it off.
DPT_API void fold_attention(Product& qkv, Product& proj, int64_t heads);

// A 1x1 convolution, in the convolution with zero padding behind it.
DPT_API Product fold_project(const Product& project, const Product& conv);

// A transposed convolution [c, c, s, s] whose kernel is its stride, in the 3x3 convolution of
// stride 1 with zero padding behind it: s * s convolutions of the small grid; see `Level::phases`.
DPT_API std::vector<Product> fold_up(const Tensor& up, const Tensor& up_bias, const Product& conv);

}  // namespace dpt::runtime
