// Any bytes behind a length that fits: the header is refused with std::invalid_argument, or its
// tensors tile the data exactly and it survives formatting.
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "dpt/io/safetensors_header.h"

namespace {

using Bytes = std::vector<unsigned char>;

void require(bool holds) {
  if (!holds) std::abort();
}

// The first byte is the number of data bytes, the others are the header: the fuzzer need not find
// out what the length field is for.
Bytes make_file(const unsigned char* data, size_t size) {
  Bytes file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<unsigned char>((size - 1) >> (8 * i)));
  file.insert(file.end(), data + 1, data + size);
  file.resize(file.size() + data[0]);
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  if (size == 0) return 0;
  dpt::SafetensorsHeader header;
  try {
    header = dpt::parse_safetensors_header(make_file(data, size));
  } catch (const std::invalid_argument&) {
    return 0;
  }
  uint64_t end = 0;
  for (const dpt::TensorEntry& entry : header.tensors) {
    require(entry.begin == end && entry.end >= entry.begin);
    end = entry.end;
  }
  require(end == data[0]);

  const std::string text = dpt::format_safetensors_header(header.tensors, header.metadata);
  require(text.size() % 8 == 0);
  Bytes again(text.begin(), text.end());
  again.resize(again.size() + data[0]);
  const dpt::SafetensorsHeader twin = dpt::parse_safetensors_header(again);
  require(twin.metadata == header.metadata && twin.tensors.size() == header.tensors.size());
  for (size_t i = 0; i < twin.tensors.size(); ++i) {
    const dpt::TensorEntry &a = twin.tensors[i], &b = header.tensors[i];
    require(a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.begin == b.begin &&
            a.end == b.end);
  }
  return 0;
}
