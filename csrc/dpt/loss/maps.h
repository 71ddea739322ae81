// csrc/dpt/loss/maps.h -- what all losses of maps check, and words for their options.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "dpt/common.h"
#include "dpt/loss/scale_and_shift.h"

namespace dpt::loss {

// prediction and target in the one type that a loss computes from: float64 if one of them has it,
// else float32. Throws ValueError if a map is none, or does not fit to the others.
std::pair<Tensor, Tensor> checked_maps(const char* name, const Tensor& prediction,
                                       const Tensor& target, const Tensor& mask);

// --- words ---

template <class Value, size_t N>
using Words = std::array<std::pair<std::string_view, Value>, N>;

inline constexpr Words<Reduction, 2> kReductions = {
    {{"image", Reduction::kImage}, {"batch", Reduction::kBatch}}};

template <class Value, size_t N>
Value find(const char* option, const Words<Value, N>& words, std::string_view word) {
  std::string known;
  for (const auto& [name, value] : words) {
    if (name == word) return value;
    known += (known.empty() ? "\"" : "\", \"") + std::string(name);
  }
  TORCH_CHECK_VALUE(false, "losses: ", option, " must be one of ", known, "\", got \"", word, "\"");
}

}  // namespace dpt::loss
