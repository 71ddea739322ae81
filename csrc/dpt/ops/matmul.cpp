#include "dpt/ops/matmul.h"

#include "dpt/ops/runtime.h"

namespace dpt {
namespace {

// A matrix whose rows, or else whose columns, are dense.
Tensor dense(const Tensor& matrix) {
  return matrix.stride(1) == 1 || matrix.stride(0) == 1 ? matrix : matrix.contiguous();
}

runtime::Factor factor(const Tensor& matrix) {  // [rows, k]
  const bool across = matrix.stride(1) != 1;
  return {.data = matrix.const_data_ptr(),
          .bfloat16 = matrix.scalar_type() == at::kBFloat16,
          .across = across,
          .stride = matrix.stride(across ? 1 : 0)};
}

}  // namespace

bool has_matmul_bfloat16() { return runtime_kernels().matrix_product.run != nullptr; }

Tensor matmul_bfloat16(const Tensor& left, const Tensor& right, const Tensor& bias,
                       at::ScalarType dtype) {
  const Tensor rows = dense(left), columns = dense(right.t());
  const Tensor offset = bias.defined() ? bias.contiguous() : bias;
  Tensor out = at::empty({rows.size(0), columns.size(0)}, rows.options().dtype(dtype));
  runtime::MatrixProduct work{.left = factor(rows),
                              .right = factor(columns),
                              .m = rows.size(0),
                              .n = columns.size(0),
                              .k = rows.size(1),
                              .bias = offset.defined() ? offset.const_data_ptr<float>() : nullptr,
                              .out = out.mutable_data_ptr(),
                              .out_bfloat16 = dtype == at::kBFloat16,
                              .out_stride = columns.size(0)};
  const Tensor packed = uninitialized_bytes(runtime_kernels().matrix_bytes(work));
  work.packed = packed.mutable_data_ptr();
  execute(runtime_kernels().matrix_pack, work);
  execute(runtime_kernels().matrix_product, work);
  return out;
}

}  // namespace dpt
