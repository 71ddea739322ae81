#include "dpt/loss/maps.h"

namespace dpt::loss {

std::pair<Tensor, Tensor> checked_maps(const char* name, const Tensor& prediction,
                                       const Tensor& target, const Tensor& mask) {
  TORCH_CHECK_VALUE(prediction.dim() == 3 && prediction.sym_sizes() == target.sym_sizes() &&
                        prediction.sym_sizes() == mask.sym_sizes(),
                    name, ": prediction, target and mask must be [B, H, W], all alike, got ",
                    prediction.sym_sizes(), ", ", target.sym_sizes(), " and ", mask.sym_sizes(),
                    "; a channel goes with squeeze(1), a batch of one comes with unsqueeze(0)");
  for (const auto& [what, map] : {std::pair{"prediction", prediction}, {"target", target}}) {
    TORCH_CHECK_VALUE(at::isFloatingType(map.scalar_type()) && map.element_size() > 1, name, ": ",
                      what, " must be float32, float64, float16 or bfloat16, got ",
                      map.scalar_type(), "; convert it with to()");
  }
  TORCH_CHECK_VALUE(mask.scalar_type() == at::kBool, name,
                    ": mask must be bool, true where the target is valid, got ", mask.scalar_type(),
                    "; pass mask > 0");
  TORCH_CHECK_VALUE(prediction.device() == target.device() && prediction.device() == mask.device(),
                    name, ": prediction, target and mask must be on one device, got ",
                    prediction.device(), ", ", target.device(), " and ", mask.device(),
                    "; move them with to()");
  TORCH_CHECK_VALUE(!target.requires_grad(), name,
                    ": gradients flow to the prediction alone, but the target requires one, too; "
                    "pass target.detach()");
  const auto type = prediction.scalar_type() == at::kDouble || target.scalar_type() == at::kDouble
                        ? at::kDouble
                        : at::kFloat;
  return {prediction.to(type), target.to(type)};
}

}  // namespace dpt::loss
