// Any bytes: the header is refused with std::invalid_argument, or its tensors tile the data
// exactly.
#include <cstdlib>
#include <set>
#include <stdexcept>

#include "dpt/io/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  dpt::SafetensorsHeader header;
  try {
    header = dpt::parse_safetensors_header({data, size});
  } catch (const std::invalid_argument&) {
    return 0;
  }
  const auto require = [](bool holds) {
    if (!holds) std::abort();
  };
  uint64_t end = 0;
  std::set<std::string> names;
  for (const dpt::TensorEntry& entry : header.tensors) {
    require(names.insert(entry.name).second);
    require(entry.begin == end && entry.end >= entry.begin);
    for (const int64_t side : entry.shape) require(side >= 0);
    end = entry.end;
  }
  require(header.data_start >= 8 && header.data_start <= size && end == size - header.data_start);
  return 0;
}
