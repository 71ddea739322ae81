// csrc/dpt/io/isl_org.h -- what the tensors of isl-org/DPT and MiDaS say about their network: the
// files hold no config.
#pragma once

#include "dpt/io/names.h"

namespace dpt {

struct IslOrgConfig {
  Config config;
  Layout layout;
  NameTable names;
};

// Whether tensors are named as isl-org, or a project that grew out of it, names them.
bool is_isl_org(const Tensors& tensors);

// Reads the config from names and shapes. What they do not tell is as in `given`, which then must
// agree with the rest; or else as in the published networks: heads of 64 channels, the taps, the
// strides, layer_norm_eps, weight_standardization, dropout, what distinguishes MiDaS v2.1,
// auxiliary_head "penultimate", no `metric`; a file without read projections is taken for
// ReadMode::kIgnore, since kAdd has no tensors either. Throws, with `origin` as the first words,
// where it is a network that this library does not have, naming it.
IslOrgConfig parse_isl_org(const Tensors& tensors, const std::string& origin,
                           const Config* given = nullptr);

}  // namespace dpt
