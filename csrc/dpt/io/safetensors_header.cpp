#include "dpt/io/safetensors_header.h"

#include <algorithm>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>

#include "dpt/io/json.h"

namespace dpt {
namespace {

// The reference implementation has the same limit on the header. The others keep a hostile header
// from costing much more memory than its own size; real models stay far below.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxTensors = 100'000;
constexpr size_t kMaxRank = 16;
// A tensor is an object, a dtype, two arrays, two offsets and its dimensions; the rest is for
// metadata.
constexpr size_t kMaxValues = kMaxTensors * (kMaxRank + 8);

constexpr size_t kLengthBytes = 8;
constexpr const char* kMetadataKey = "__metadata__";

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }

int64_t item_size(const std::string& dtype) {
  static constexpr std::pair<std::string_view, int64_t> kItemSizes[] = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
      {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};
  for (const auto& [name, size] : kItemSizes) {
    if (name == dtype) return size;
  }
  fail("wanted dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL, got " +
       json::quoted(dtype));
}

std::string shown(const std::vector<int64_t>& shape) {
  return json::dump(json::Array(shape.begin(), shape.end()));
}

uint64_t byte_size(const TensorEntry& entry) {
  const int64_t size = item_size(entry.dtype);
  if (entry.shape.size() > kMaxRank) {
    fail("wanted a shape of at most " + std::to_string(kMaxRank) + " dimensions, got " +
         std::to_string(entry.shape.size()));
  }
  // Zeros are left out of the product that is checked: strides are products of the other
  // dimensions.
  int64_t bytes = size;
  bool is_empty = false;
  for (const int64_t dim : entry.shape) {
    if (dim < 0) fail("wanted dimensions of 0 or more, got shape " + shown(entry.shape));
    if (dim == 0) {
      is_empty = true;
    } else if (__builtin_mul_overflow(bytes, dim, &bytes)) {
      fail("the shape " + shown(entry.shape) + " of " + entry.dtype +
           " overflows 64 bits: wanted a shape that fits the file");
    }
  }
  return is_empty ? 0 : static_cast<uint64_t>(bytes);
}

void check_size(const TensorEntry& entry) {
  if (const uint64_t wanted = byte_size(entry); entry.end - entry.begin != wanted) {
    fail("wanted " + std::to_string(wanted) + " bytes for shape " + shown(entry.shape) + " of " +
         entry.dtype + ", got data_offsets " + std::to_string(entry.begin) + " to " +
         std::to_string(entry.end));
  }
}

uint64_t as_offset(const json::Value& value) {
  const int64_t offset = value.as_int();
  if (offset < 0) fail("wanted data_offsets of 0 or more, got " + std::to_string(offset));
  return static_cast<uint64_t>(offset);
}

// Errors here leave out the tensor's name; in_tensor adds it.
TensorEntry parse_entry(const std::string& name, const json::Value& value, uint64_t data_bytes) {
  for (const auto& [key, field] : value.as_object()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      fail("wanted only dtype, shape and data_offsets, got the key " + json::quoted(key));
    }
  }
  const auto field = [&](const char* key) -> const json::Value& {
    if (const json::Value* found = value.find(key)) return *found;
    fail(std::string("wanted dtype, shape and data_offsets, got no ") + key);
  };

  TensorEntry entry;
  entry.name = name;
  entry.dtype = field("dtype").as_string();
  for (const json::Value& dim : field("shape").as_array()) entry.shape.push_back(dim.as_int());
  const json::Array& offsets = field("data_offsets").as_array();
  if (offsets.size() != 2) {
    fail("wanted two data_offsets, begin and end, got " + std::to_string(offsets.size()));
  }
  entry.begin = as_offset(offsets[0]);
  entry.end = as_offset(offsets[1]);
  const std::string range = std::to_string(entry.begin) + " to " + std::to_string(entry.end);
  if (entry.begin > entry.end) fail("wanted data_offsets in order, got " + range);
  if (entry.end > data_bytes) {
    fail("wanted data_offsets within the " + std::to_string(data_bytes) + " bytes of data, got " +
         range + ", past the end");
  }
  check_size(entry);
  return entry;
}

template <class Check>
auto in_tensor(const std::string& name, Check check) {
  try {
    return check();
  } catch (const std::invalid_argument& error) {
    fail("safetensors header: tensor " + json::quoted(name) + ": " + error.what());
  }
}

std::map<std::string, std::string> parse_metadata(const json::Value& value) {
  std::map<std::string, std::string> metadata;
  try {
    for (const auto& [key, text] : value.as_object()) metadata[key] = text.as_string();
  } catch (const json::Error& error) {
    fail(std::string("safetensors header: __metadata__ must map strings to strings: ") +
         error.what());
  }
  return metadata;
}

void check_tiling(const std::vector<TensorEntry>& tensors, uint64_t data_bytes) {
  uint64_t end = 0;
  for (const TensorEntry& entry : tensors) {
    if (entry.begin != end) {
      fail("safetensors header: tensor " + json::quoted(entry.name) +
           (entry.begin < end ? " overlaps the one before it" : " leaves a hole before it") +
           ": wanted it to begin at byte " + std::to_string(end) + " of the data, got " +
           std::to_string(entry.begin));
    }
    end = entry.end;
  }
  if (end != data_bytes) {
    fail("safetensors header: wanted " + std::to_string(end) +
         " bytes of data for its tensors, got " + std::to_string(data_bytes) +
         ": the file has trailing bytes");
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const unsigned char> file) {
  if (file.size() < kLengthBytes) {
    fail("safetensors header: wanted at least 8 bytes, the length of the header, got a file of " +
         std::to_string(file.size()));
  }
  uint64_t length = 0;  // little-endian
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | file[i];
  if (length > kMaxHeaderBytes) {
    fail("safetensors header: wanted a length of at most " + std::to_string(kMaxHeaderBytes) +
         " bytes, got " + std::to_string(length));
  }
  if (length > file.size() - kLengthBytes) {
    fail("safetensors header: wanted " + std::to_string(length) +
         " bytes, got a file that ends after " + std::to_string(file.size() - kLengthBytes) +
         " of them");
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) fail("safetensors header: wanted JSON that begins with '{'");

  json::Value root;
  try {
    root = json::parse(text, kMaxValues);
  } catch (const json::Error& error) {
    fail(std::string("safetensors header: ") + error.what());
  }

  SafetensorsHeader header;
  header.data_start = kLengthBytes + length;
  const uint64_t data_bytes = file.size() - header.data_start;
  const json::Object& members = root.as_object();
  if (members.size() > kMaxTensors + 1) {
    fail("safetensors header: wanted at most " + std::to_string(kMaxTensors) + " tensors, got " +
         std::to_string(members.size()));
  }
  for (const auto& member : members) {
    if (member.first == kMetadataKey) {
      header.metadata = parse_metadata(member.second);
    } else {
      header.tensors.push_back(in_tensor(
          member.first, [&] { return parse_entry(member.first, member.second, data_bytes); }));
    }
  }
  // By end too: an empty tensor may begin where the next one does.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_tiling(header.tensors, data_bytes);
  return header;
}

std::string format_safetensors_header(const std::vector<TensorEntry>& tensors,
                                      const std::map<std::string, std::string>& metadata) {
  if (tensors.size() > kMaxTensors) {
    fail("safetensors header: wanted at most " + std::to_string(kMaxTensors) + " tensors, got " +
         std::to_string(tensors.size()));
  }
  json::Object members;
  if (!metadata.empty()) members[kMetadataKey] = json::Object(metadata.begin(), metadata.end());
  for (const TensorEntry& entry : tensors) {
    in_tensor(entry.name, [&] { check_size(entry); });
    json::Object fields;
    fields["dtype"] = entry.dtype;
    fields["shape"] = json::Array(entry.shape.begin(), entry.shape.end());
    fields["data_offsets"] =
        json::Array{static_cast<int64_t>(entry.begin), static_cast<int64_t>(entry.end)};
    if (entry.name == kMetadataKey || !members.emplace(entry.name, std::move(fields)).second) {
      fail("safetensors header: wanted each tensor name once and none __metadata__, got " +
           json::quoted(entry.name));
    }
  }

  std::string text;
  try {
    text = json::dump(members);
  } catch (const json::Error& error) {
    fail(std::string("safetensors header: ") + error.what());
  }
  constexpr size_t kTo = kSafetensorsAlignment;
  text.resize((kLengthBytes + text.size() + kTo - 1) / kTo * kTo - kLengthBytes, ' ');
  if (text.size() > kMaxHeaderBytes) {
    fail("safetensors header: wanted a length of at most " + std::to_string(kMaxHeaderBytes) +
         " bytes, got " + std::to_string(text.size()));
  }
  std::string out;
  for (size_t i = 0; i < kLengthBytes; ++i) out += static_cast<char>(text.size() >> (8 * i));
  return out + text;
}

}  // namespace dpt
