// csrc/dpt/runtime/kernels.h -- what the CPU runtime computes with.
//
// No torch here: raw pointers, and no allocation. A kernel's work is cut into units that do not
// depend on the number of threads, and `begin, end` says which units a call does; so the result has
// the same bits however the units are shared out. Maps are float32, [batch, height, width,
// channels] with channels next to each other; tokens are maps of one row.
//
// The kernels are compiled once for each instruction set, from the same sources; `kernels(Isa)`
// gives the table of one of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dpt/export.h"

namespace dpt::runtime {

// --- instruction sets ---

// Each has what those before it have. kAvx512: F, BW, DQ and VL; kAvx512Vnni: products of int8;
// kAvx512Bf16: of bfloat16; kAmx: of both in tiles.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };
constexpr Isa kIsas[] = {Isa::kBaseline,   Isa::kAvx2,       Isa::kAvx512,
                         Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx};

// The fastest one that this processor has and this library was compiled for. The environment
// variable DPT_ISA (baseline, avx2, avx512, avx512_vnni, avx512_bf16, amx) asks for a lesser one.
DPT_API Isa best_isa();
DPT_API bool is_supported(Isa isa);
DPT_API const char* to_string(Isa isa);

// --- maps ---

// Floats from one image, row and pixel to the next.
struct Strides {
  int64_t image, row, pixel;
};

// A place of the input, relative to that of the output pixel (times `stride`).
struct Tap {
  int32_t dy, dx;
};

// --- matrix products ---

// Of what type the factors of a product are; they are float32 outside, and sums are float32 (of
// int8: int32).
enum class Precision { kFloat32, kBFloat16, kInt8 };

// What happens to a pixel of the input when it is read.
enum class Load {
  kPlain,
  kRelu,
  kLayerNorm,  // (x - mean) / sqrt(variance + eps) over its `run` channels; one tap
  kAffine,     // x * scale + shift, [batch, run]
  kAffineRelu,
};

enum class Activation { kNone, kRelu, kGelu };  // GELU by erf

// Weights [n, k] in panels, [k / kPanelDepth, n / kPanelColumns, kPanelDepth, kPanelColumns]: what
// the kernels of AVX-512 make of float32 where these sizes divide k and n, and what a file may
// hold.
constexpr int64_t kPanelDepth = 256, kPanelColumns = 32;

// A factor [n, k] that was packed by `Kernels::pack` of the same instruction set.
struct PackedMatrix {
  Precision precision;
  int64_t k, n;
  const void* data;
};

// Every convolution and linear layer: for each output pixel p = (b, y, x) the product
//   out[p, :] = weights [n, k] . (in[b, y * stride + dy, x * stride + dx, 0 .. run] for each tap)
// with k = taps * run and zeros outside of the input; then
//   out = activation(out + bias + border) + add.
// A linear layer is one tap (0, 0). A phase of a transposed convolution writes to a strided output.
struct Convolution {
  // input
  const float* in = nullptr;
  Strides in_strides{};
  int64_t height = 0, width = 0;  // of the input
  int64_t stride = 1;
  const Tap* taps = nullptr;
  int64_t num_taps = 0, run = 0;
  Load load = Load::kPlain;
  const float* scale = nullptr;
  const float* shift = nullptr;
  float eps = 0;
  // weights
  PackedMatrix weights{};
  // output: batch x out_height x out_width pixels of weights.n channels
  int64_t batch = 1, out_height = 1, out_width = 1;
  float* out = nullptr;
  Strides out_strides{};
  const float* bias = nullptr;  // [n]
  // [16, n]: a bias by where the pixel is, at number 4 * r + c with r = 1 in the first row plus 2
  // in the last one, and c likewise of columns.
  const float* border = nullptr;
  Activation activation = Activation::kNone;
  const float* add = nullptr;  // may be `out` itself
  Strides add_strides{};
  bool add_relu = false;  // relu(add) is added
};

// 3x3 convolution of stride 1 with zero padding by Winograd's F(4x4, 3x3), in float32:
//   out = activation(conv(load(in)) + bias) + add.
struct Winograd {
  const float* in = nullptr;
  Strides in_strides{};
  int64_t batch = 1, height = 0, width = 0, channels = 0;
  bool load_relu = false;
  const void* weights = nullptr;  // what `Kernels::winograd_pack` makes of them
  int64_t n = 0;
  float* out = nullptr;
  Strides out_strides{};
  const float* bias = nullptr;  // [n]
  bool relu = false;
  const float* add = nullptr;  // may be `out` itself, and not `in`
  Strides add_strides{};
  bool add_relu = false;
};

struct WinogradWeights {
  const float* weights = nullptr;  // [n, channels, 3, 3]
  int64_t channels = 0, n = 0;
  void* packed = nullptr;  // winograd_bytes(channels, n), aligned to 64
};

// The gradient of such a convolution's weights, with the points of input and gradient:
//   points [36, n, channels] = sum over tiles of gradient points [36, tiles, n]^T . input points
//   [36, tiles, channels].
struct WinogradPoints {
  const float* in = nullptr;
  Strides in_strides{};
  int64_t batch = 1, height = 0, width = 0, channels = 0;
  bool of_gradient = false;      // of the output's gradient, else of the input
  int64_t first = 0, tiles = 0;  // which of batch * ceil(height / 4) * ceil(width / 4) tiles
  float* out = nullptr;          // [36, tiles, channels]
  int64_t point_stride = 0;      // floats from one point to the next
};

struct WinogradTaps {
  const float* points = nullptr;  // [36, n, channels]
  int64_t n = 0, channels = 0;
  float* taps = nullptr;  // [n, channels, 3, 3]
};

// --- products of two matrices ---

// A matrix [rows, k] of bfloat16, or of float32 that is rounded to it. Of an element the place is
// row * stride + k, or, `across`, k * stride + row.
struct Factor {
  const void* data = nullptr;
  bool bfloat16 = false, across = false;
  int64_t stride = 0;
};

// out [m, n] = left [m, k] . right [n, k]^T + bias, with sums in float32.
struct MatrixProduct {
  Factor left{}, right{};
  int64_t m = 0, n = 0, k = 0;
  void* packed = nullptr;       // what matrix_pack makes of `right`, aligned to 64 bytes
  const float* bias = nullptr;  // [n]
  void* out = nullptr;          // float32 or bfloat16
  bool out_bfloat16 = false;
  int64_t out_stride = 0;
};

// --- attention ---

// softmax(q k^T) v of each head. The scale is in q already. With kInt8, too, it is float32.
struct Attention {
  Precision precision = Precision::kFloat32;
  const float* qkv = nullptr;  // [batch, tokens, 3, heads, head_dim]
  int64_t batch = 1, tokens = 0, heads = 0, head_dim = 0;
  float* out = nullptr;  // [batch, tokens, heads, head_dim]
};

// The gradient of softmax(scale q k^T) v, all of bfloat16 but logsumexp: of scale q k^T over keys.
struct AttentionGradient {
  const uint16_t* qkv = nullptr;       // [batch, tokens, 3, heads, head_dim]
  const uint16_t* out = nullptr;       // [batch, tokens, heads, head_dim]
  const uint16_t* grad_out = nullptr;  // likewise
  const float* logsumexp = nullptr;    // [batch, heads, tokens]
  int64_t batch = 1, tokens = 0, heads = 0, head_dim = 0;
  float scale = 1;
  uint16_t* grad = nullptr;  // of qkv, as it is
};

// --- resampling ---

// out = bilinear(in, to the size of out) + add; `add` may be null or `out` itself.
struct UpsampleAdd {
  const float* in = nullptr;
  Strides in_strides{};
  int64_t batch = 1, height = 0, width = 0, channels = 0;  // of the input
  bool align_corners = true;
  float* out = nullptr;
  Strides out_strides{};
  int64_t out_height = 0, out_width = 0;
  const float* add = nullptr;
  Strides add_strides{};
};

// A 3x3 convolution with zero padding of a map that was resized bilinearly, when the products with
// the weights were made before the resizing: `in` holds for each pixel those of the nine taps,
// [batch, height, width, 9, channels], tap 3 * (dy + 1) + dx + 1.
//   x = sum over taps of bilinear(in[tap]) moved by (dy, dx), + bias + border; relu(x) if `relu`.
// Without `dot` x is written, [batch, out_height, out_width, channels]. With it only
//   d = relu(sum over channels of dot * relu(x) + dot_bias)
// is, [batch, out_height, out_width], or with `invert` 1 / max(invert_scale * d + invert_shift,
// 1e-8).
struct UpsampleGather {
  const float* in = nullptr;
  Strides in_strides{};  // `pixel` is 9 * channels or more
  int64_t batch = 1, height = 0, width = 0, channels = 0;
  bool align_corners = true;
  float* out = nullptr;
  Strides out_strides{};
  int64_t out_height = 0, out_width = 0;
  const float* bias = nullptr;    // [channels]
  const float* border = nullptr;  // [16, channels], as of Convolution
  bool relu = false;
  const float* dot = nullptr;  // [channels]
  float dot_bias = 0;
  bool invert = false;
  float invert_scale = 1, invert_shift = 0;
};

// --- maps of convolutional encoders ---

// Group normalisation as a scale and a shift of each channel, [batch, channels], for Load::kAffine.
struct GroupStatistics {
  const float* in = nullptr;
  Strides in_strides{};
  int64_t batch = 1, height = 0, width = 0, channels = 0, groups = 1;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float eps = 0;
  float* scale = nullptr;
  float* shift = nullptr;
};

// out = relu(in * scale + shift + add * add_scale + add_shift), [batch, pixels, channels], all
// contiguous; scales and shifts are [batch, channels], and null is 1 and 0; `add` may be null.
struct AffineAddRelu {
  const float* in = nullptr;
  const float* scale = nullptr;
  const float* shift = nullptr;
  const float* add = nullptr;
  const float* add_scale = nullptr;
  const float* add_shift = nullptr;
  int64_t batch = 1, pixels = 0, channels = 0;
  float* out = nullptr;
};

// Maximum of windows of 3x3 at every second pixel; `before` rows and columns of padding at the top
// and the left. What is outside does not count, but if `zeros` it counts as 0. Contiguous.
struct MaxPool {
  const float* in = nullptr;
  int64_t batch = 1, height = 0, width = 0, channels = 0, before = 1;
  bool zeros = false;
  // Applied first, [batch, channels], with a ReLU behind it, if not null: of group normalisation.
  const float* scale = nullptr;
  const float* shift = nullptr;
  float* out = nullptr;
  int64_t out_height = 0, out_width = 0;
};

// --- the table ---

// For each kernel `units` (how many there are), `scratch` (bytes that one call needs at `scratch`,
// aligned to 64), `run` of some units, and `block`: how many units next to each other share what
// takes time, as one reading of the weights or the packed keys of a head; 0 or null: none.
template <class Work>
struct Kernel {
  int64_t (*units)(const Work&);
  size_t (*scratch)(const Work&);
  void (*run)(const Work&, int64_t begin, int64_t end, void* scratch);
  int64_t (*block)(const Work&) = nullptr;
};

struct Kernels {
  Isa isa;
  bool reads_panels = false;  // weights in panels of float32, aligned to 64, are packed already
  // Whether int8 is faster than Winograd's algorithm for 3x3 convolutions.
  bool int8_beats_winograd = false;
  // Of the products of an int8 network that are not int8: what is fastest.
  Precision beside_int8 = Precision::kFloat32;

  // Packs weights [n, k], row by row, into packed_bytes(precision, k, n) bytes aligned to 64.
  size_t (*packed_bytes)(Precision precision, int64_t k, int64_t n);
  void (*pack)(Precision precision, const float* weights, int64_t k, int64_t n, void* packed);
  size_t (*winograd_bytes)(int64_t channels, int64_t n);
  Kernel<WinogradWeights> winograd_pack;
  Kernel<WinogradPoints> winograd_points;
  Kernel<WinogradTaps> winograd_taps;

  // With tiles only, else null. A product: first matrix_pack, of matrix_bytes(work) bytes.
  size_t (*matrix_bytes)(const MatrixProduct&) = nullptr;
  Kernel<MatrixProduct> matrix_pack{};
  Kernel<MatrixProduct> matrix_product{};
  Kernel<AttentionGradient> attention_gradient{};

  Kernel<Convolution> convolution;
  Kernel<Winograd> winograd;
  Kernel<Attention> attention;
  Kernel<UpsampleAdd> upsample_add;
  Kernel<UpsampleGather> upsample_gather;
  Kernel<GroupStatistics> group_statistics;
  Kernel<AffineAddRelu> affine_add_relu;
  Kernel<MaxPool> max_pool;
};

// The kernels of an instruction set, which must be supported.
DPT_API const Kernels& kernels(Isa isa);

}  // namespace dpt::runtime
