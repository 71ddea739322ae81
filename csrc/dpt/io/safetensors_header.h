// csrc/dpt/io/safetensors_header.h -- the header of a safetensors file: 8 bytes of length, then
// JSON. No torch, so that it can be fuzzed alone. Format:
// https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "dpt/export.h"

namespace dpt {

struct TensorEntry {
  std::string name;
  std::string dtype;  // as in the file: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from the start of the data
};

// The data begins at such a multiple, bytes, when it is written here, and so do tensors of such a
// size.
constexpr size_t kSafetensorsAlignment = 64;

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // sorted by begin
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;  // bytes, from the start of the file
};

// Reads the header of a whole file and checks it to the last byte: the tensors fill the data
// exactly, in order, without overlap or hole, each as large as its shape and dtype say. Throws
// std::invalid_argument that names the tensor and the numbers.
DPT_API SafetensorsHeader parse_safetensors_header(std::span<const unsigned char> file);

// The bytes of a file up to its data: length and JSON, padded so that the data is aligned.
// Throws std::invalid_argument on what parse_safetensors_header would refuse.
DPT_API std::string format_safetensors_header(const std::vector<TensorEntry>& tensors,
                                              const std::map<std::string, std::string>& metadata);

}  // namespace dpt
