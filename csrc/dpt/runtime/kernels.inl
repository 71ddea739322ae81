// csrc/dpt/runtime/kernels.inl -- the table of kernels of one instruction set. The including file
// says which by DPT_ISA and DPT_ISA_VALUE, and by its compiler options in CMakeLists.txt.
#include "dpt/runtime/attention.inl"
#include "dpt/runtime/attention_gradient.inl"
#include "dpt/runtime/attention_tiles.inl"
#include "dpt/runtime/convolution.inl"
#include "dpt/runtime/maps.inl"
#include "dpt/runtime/matrices.inl"
#include "dpt/runtime/resampling.inl"
#include "dpt/runtime/winograd.inl"
#include "dpt/runtime/winograd_gradient.inl"

namespace dpt::runtime::DPT_ISA {

namespace {

constexpr Kernels kTable{
    .isa = Isa::DPT_ISA_VALUE,
    .reads_panels = kDepth == kPanelDepth && kColumns == kPanelColumns,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .winograd_bytes = winograd_bytes,
    .winograd_pack = {winograd_pack_units, winograd_pack_scratch, winograd_pack},
    .winograd_points = {winograd_gradient::units, winograd_gradient::scratch,
                        winograd_gradient::run},
    .winograd_taps = {winograd_gradient::units, winograd_gradient::scratch, winograd_gradient::run},
    .convolution = kConvolution<Isa::DPT_ISA_VALUE>,
    .winograd = {units, scratch, run, block},
    .attention = {units, scratch, run_attention<false>, block},
    .upsample_add = {units, scratch, run},
    .upsample_gather = {units, scratch, run},
    .group_statistics = {units, scratch, run},
    .affine_add_relu = {units, scratch, run},
    .max_pool = {units, scratch, run},
};

}  // namespace

const Kernels& table() { return kTable; }

#if defined(__AVX512F__)
const Kernels& table_with_vnni() {
  static constexpr Kernels kVnni = [] {
    Kernels kernels = kTable;
    kernels.isa = Isa::kAvx512Vnni;
    kernels.int8_beats_winograd = true;
    kernels.convolution = kConvolution<Isa::kAvx512Vnni>;
    return kernels;
  }();
  return kVnni;
}

const Kernels& table_with_bfloat16() {
  static constexpr Kernels kBFloat16 = [] {
    Kernels kernels = kTable;
    kernels.isa = Isa::kAvx512Bf16;
    kernels.int8_beats_winograd = true;
    kernels.convolution = kConvolution<Isa::kAvx512Bf16>;
    kernels.attention.run = run_attention<true>;
    return kernels;
  }();
  return kBFloat16;
}

const Kernels& table_with_tiles() {
  static constexpr Kernels kTiled = [] {
    Kernels kernels = kTable;
    kernels.isa = Isa::kAmx;
    kernels.int8_beats_winograd = true;
    kernels.beside_int8 = Precision::kBFloat16;
    kernels.matrix_bytes = matrices::packed_bytes;
    kernels.matrix_pack = {matrices::pack_units, matrices::pack_scratch, matrices::pack};
    kernels.matrix_product = {matrices::units, matrices::scratch, matrices::run};
    kernels.attention_gradient = {attention_gradient::units, attention_gradient::scratch,
                                  attention_gradient::run};
    kernels.convolution = kConvolution<Isa::kAmx>;
    kernels.attention = {attention_tiles::units, attention_tiles::scratch, attention_tiles::run,
                         attention_tiles::block};
    return kernels;
  }();
  return kTiled;
}
#endif

}  // namespace dpt::runtime::DPT_ISA
