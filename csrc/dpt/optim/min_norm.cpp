// csrc/dpt/optim/min_norm.cpp -- dpt::min_norm as an operator: checks, host copy, registration.
#include "dpt/optim/min_norm.h"

#include <torch/library.h>

#include <algorithm>
#include <stdexcept>

namespace dpt {
namespace {

void check(const Tensor& gram) {
  TORCH_CHECK_VALUE(gram.dim() == 2 && gram.sym_size(0) == gram.sym_size(1) && gram.sym_size(0) > 0,
                    "min_norm: gram must be [T, T] with at least one task, got ", gram.sym_sizes());
  TORCH_CHECK_VALUE(at::isFloatingType(gram.scalar_type()),
                    "min_norm: gram must be of a floating point type, got ", gram.scalar_type());
}

Tensor min_norm_host(const Tensor& gram) {
  check(gram);
  const Tensor values = gram.to(at::kCPU, at::kDouble).contiguous();
  const Tensor weights = at::empty({gram.size(0)}, values.options());
  try {
    std::ranges::copy(
        min_norm({values.const_data_ptr<double>(), static_cast<size_t>(values.numel())},
                 static_cast<size_t>(gram.size(0))),
        weights.mutable_data_ptr<double>());
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
  return weights.to(gram.options());
}

Tensor min_norm_meta(const Tensor& gram) {
  check(gram);
  return at::empty_symint({gram.sym_size(0)}, gram.options());
}

Tensor min_norm_autograd(const Tensor& gram) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return min_norm(gram);
}

}  // namespace

Tensor min_norm(const Tensor& gram) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::min_norm", "")
                             .typed<Tensor(const Tensor&)>();
  return op.call(gram);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) { m.def("min_norm(Tensor gram) -> Tensor"); }

TORCH_LIBRARY_IMPL(dpt, CompositeExplicitAutograd, m) { m.impl("min_norm", min_norm_host); }
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("min_norm", min_norm_meta); }
TORCH_LIBRARY_IMPL(dpt, Autograd, m) { m.impl("min_norm", min_norm_autograd); }

}  // namespace dpt
