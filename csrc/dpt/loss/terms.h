// csrc/dpt/loss/terms.h -- the terms of a scale- and shift-invariant loss, as data; no torch.
#pragma once

#include <cstdint>

namespace dpt::loss {

// Medians and mean absolute deviations of both maps, or least squares of prediction to target.
enum class Alignment { kNone, kRobust, kLeastSquares };
// Of the residuals: the smallest ones' absolute values, all absolute values, squares.
enum class DataTerm { kNone, kTrimmed, kAbsolute, kSquared };

// Why an image does not count; its loss and gradient are zero then.
enum Dropped : int64_t {
  kUsed = 0,
  kEmpty = 1,      // no valid pixel
  kConstant = 2,   // prediction or target: it has no scale
  kNotFinite = 3,  // NaN or infinity at a valid pixel, or in the sums of the alignment
};

struct Terms {
  Alignment alignment;
  DataTerm data;
  bool published;           // medians over all pixels of mask * map, trimming over the whole batch
  int64_t trim_millionths;  // of the valid pixels: the largest residuals, which do not count
  int64_t num_scales;       // of the gradient term, at most kMaxScales
};
constexpr int64_t kMaxScales = 16;

// Of one image: what its residuals and the backward pass are made from.
struct Stats {
  double count;              // valid pixels; 0 if the image is dropped
  double prediction_centre;  // median or mean
  double prediction_spread;  // mean absolute deviation, or variance
  double target_centre;
  double target_spread;      // mean absolute deviation, or covariance
  double num_centre;         // pixels equal to the median
  double sum_signs;          // of prediction - median
  double threshold;          // trimming: larger residuals do not count ...
  double kept_at_threshold;  // ... and of those equal to it this share
};
constexpr int64_t kNumStats = sizeof(Stats) / sizeof(double);

// An image after alignment: scale * prediction + shift is aligned to the target.
struct Aligned {
  double scale, shift;
  Dropped dropped;
};

}  // namespace dpt::loss
