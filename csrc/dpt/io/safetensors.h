// csrc/dpt/io/safetensors.h -- tensors from and to safetensors files; reading one never runs code.
#pragma once

#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dpt/common.h"

namespace dpt {

struct Safetensors {
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;  // on the CPU
  std::span<const unsigned char> mapped;  // the file, while a tensor that lies in it lives
};

// Maps the file into memory, so nothing is copied and pages are read when first touched. Each
// tensor keeps the mapping alive, and gives the memory of its own pages back when it goes; writing
// to one changes neither the file nor what others read from it. A tensor whose bytes are not
// aligned to its item size is copied. BOOL bytes other than 0 and 1 are refused, since in C++ they
// are no bool. Replacing the file (as write_safetensors does) or deleting it is safe while tensors
// live; shortening it in place is not.
DPT_API Safetensors read_safetensors(const std::string& path);

// Writes to a temporary name in the same folder, then renames: a reader sees the old file or the
// new one, after a crash too, and a failed write leaves the old one. Tensors may be on any device
// and of any strides; they come to the CPU one at a time. Equal input gives equal bytes. A symbolic
// link at `path` is replaced, not followed.
DPT_API void write_safetensors(const std::string& path,
                               const std::vector<std::pair<std::string, Tensor>>& tensors,
                               const std::map<std::string, std::string>& metadata);

}  // namespace dpt
