// csrc/dpt/io/isl_org.h -- what the tensors of isl-org/DPT say about their network: its files hold
// no config.
#pragma once

#include <map>

#include "dpt/io/names.h"

namespace dpt {

struct IslOrgConfig {
  Config config;
  const NameTable* names;
};

// Whether tensors are named as isl-org, or a project that grew out of it, names them.
bool is_isl_org(const std::map<std::string, Tensor>& tensors);

// Reads the config from names and shapes. What they do not tell is that of the published networks:
// heads of 64 channels, the taps, the strides, layer_norm_eps. A file without read projections is
// taken for ReadMode::kIgnore; kAdd has no tensors either. Throws, with `origin` as the first
// words, where it is a network that this library does not have, naming it.
IslOrgConfig parse_isl_org(const std::map<std::string, Tensor>& tensors, const std::string& origin);

}  // namespace dpt
