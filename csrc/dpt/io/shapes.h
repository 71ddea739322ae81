// csrc/dpt/io/shapes.h -- what names and shapes of tensors say about a network.
#pragma once

#include "dpt/io/names.h"

namespace dpt {

// Looks tensors up by our names. `origin` is the first words of errors.
struct Shapes {
  const Tensors& tensors;
  const NameTable& names;
  const std::string& origin;

  const Tensor* find(const std::string& ours) const;
  // One size of a tensor that must be there and have so many dimensions.
  int64_t size(const std::string& ours, int64_t dims, int64_t dim) const;
  // One more than the greatest index of the parts of a sequence; `first` is a tensor of part 0,
  // "encoder.blocks.0.norm1.weight", and `sequence` its beginning, "encoder.blocks.".
  int64_t count(const std::string& sequence, const std::string& first) const;
};

// The side of the grid that a position embedding is of.
int64_t pos_embed_grid(const Shapes& shapes, bool distilled);

// Sets the fields of the encoder that shapes tell; config.encoder is which one it is. The others
// (heads, taps, layer_norm_eps, weight_standardization) stay.
void set_encoder_fields(const Shapes& shapes, Config& config);

// `config` with the fields that nothing in its network reads as they are by default, so that
// configs of one network are equal.
Config canonical(Config config);

struct Difference {
  std::string field;
  std::string first, second;  // its values, as JSON
};

// The first field, by name, in which two configs differ.
std::optional<Difference> find_difference(const Config& first, const Config& second);

}  // namespace dpt
