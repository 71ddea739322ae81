// csrc/dpt/ops/all_reduce.h -- a sum over processes, with its gradient.
#pragma once

#include <string>

#include "dpt/common.h"

namespace dpt {

// The sum of x over the processes of a group (torch.distributed's name of it, `group.group_name`),
// on each of them. All must call. The gradient is the sum of their gradients.
DPT_API Tensor all_reduce_sum(const Tensor& x, const std::string& process_group);

}  // namespace dpt
