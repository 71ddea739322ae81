// csrc/dpt/io/json.h -- a small strict JSON (RFC 8259): configs and safetensors headers. No torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "dpt/export.h"

namespace dpt::json {

// Text that is not JSON, a value of another kind than asked for, or a value that JSON cannot hold.
struct DPT_API Error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct Value;
using Array = std::vector<Value>;
using Object = std::map<std::string, Value, std::less<>>;  // sorted, so that dump is canonical

// One JSON value. A number without fraction and exponent that fits int64 is an integer, any other a
// double; 1 and 1.0 are different values.
struct DPT_API Value {
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> data = nullptr;

  Value() = default;
  Value(std::nullptr_t) {}
  Value(bool value) : data(value) {}
  Value(int value) : data(int64_t{value}) {}
  Value(int64_t value) : data(value) {}
  Value(double value) : data(value) {}
  Value(const char* value) : data(std::string(value)) {}
  Value(std::string value) : data(std::move(value)) {}
  Value(Array value) : data(std::move(value)) {}
  Value(Object value) : data(std::move(value)) {}

  // Each throws Error on a value of another kind.
  bool as_bool() const;
  int64_t as_int() const;
  double as_double() const;  // also takes an integer
  const std::string& as_string() const;
  const Array& as_array() const;
  const Object& as_object() const;

  // The member of an object, or null where the object has no such key.
  const Value* find(std::string_view key) const;

  bool operator==(const Value& other) const;
};

// Arrays and objects may lie this deep in each other, in parse and in dump.
inline constexpr int kMaxDepth = 64;

// Refuses what RFC 8259 does not allow, and also: invalid UTF-8, a key given twice, a number
// outside the range of double, more than kMaxDepth levels, more than max_values values (a value
// takes about 60 bytes of memory, but may take only two bytes of text). Errors name the byte
// offset.
DPT_API Value parse(std::string_view text, size_t max_values = 1'000'000);

// Canonical text: sorted keys, shortest doubles that read back the same (1.0 stays a double), UTF-8
// unescaped. indent = 0 writes no spaces; otherwise each level is indented by that many. Refuses
// non-finite doubles and strings that are not UTF-8.
DPT_API std::string dump(const Value& value, int indent = 0);

// Text of any origin as an error message shows it: quoted, escaped, and cut when long.
DPT_API std::string quoted(std::string_view text);

}  // namespace dpt::json
