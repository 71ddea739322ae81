// csrc/dpt/io/transformers_config.h -- transformers' DPTConfig (model_type "dpt") and ours.
#pragma once

#include "dpt/config.h"

namespace dpt {

struct TransformersConfig {
  Config config;
  int64_t num_layers;  // as declared; blocks after the last tap are never run and not in `config`
};

// Throws where it describes a network that this library does not have, naming the field.
TransformersConfig parse_transformers_config(const json::Value& value);

// Text of a config.json. Throws where transformers has no such network.
std::string to_transformers_config(const Config& config);

}  // namespace dpt
