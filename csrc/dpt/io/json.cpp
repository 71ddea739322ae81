#include "dpt/io/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <system_error>

namespace dpt::json {
namespace {

constexpr char kHexDigits[] = "0123456789abcdef";

bool is_digit(int c) { return c >= '0' && c <= '9'; }

// Bytes of the UTF-8 sequence that `text` begins with; 0 where it begins with none.
// RFC 3629, Sec. 4: no overlong forms, no surrogates, nothing above U+10FFFF.
size_t utf8_size(std::string_view text) {
  const auto in = [&](size_t i, unsigned low, unsigned high) {
    return i < text.size() && static_cast<unsigned char>(text[i]) >= low &&
           static_cast<unsigned char>(text[i]) <= high;
  };
  const auto tail = [&](size_t i) { return in(i, 0x80, 0xBF); };
  if (in(0, 0x00, 0x7F)) return 1;
  if (in(0, 0xC2, 0xDF)) return tail(1) ? 2 : 0;
  if (in(0, 0xE0, 0xEF)) {
    const bool second = in(0, 0xE0, 0xE0)   ? in(1, 0xA0, 0xBF)
                        : in(0, 0xED, 0xED) ? in(1, 0x80, 0x9F)
                                            : tail(1);
    return second && tail(2) ? 3 : 0;
  }
  if (in(0, 0xF0, 0xF4)) {
    const bool second = in(0, 0xF0, 0xF0)   ? in(1, 0x90, 0xBF)
                        : in(0, 0xF4, 0xF4) ? in(1, 0x80, 0x8F)
                                            : tail(1);
    return second && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

void append_utf8(std::string& out, uint32_t code) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

class Parser {
 public:
  Parser(std::string_view text, size_t max_values) : text_(text), max_values_(max_values) {}

  Value parse_text() {
    Value value = parse_value(0);
    skip_space();
    if (at_ != text_.size()) fail("the end of the text");
    return value;
  }

 private:
  // The next byte, or -1 at the end.
  int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1; }

  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void skip_space() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
  }

  [[noreturn]] void fail(const std::string& wanted) const {
    std::string got = "the end of the text";
    if (const int c = peek(); c > 0x20 && c < 0x7F) {
      got = {'\'', static_cast<char>(c), '\''};
    } else if (c >= 0) {
      got = {'b', 'y', 't', 'e', ' ', '0', 'x', kHexDigits[c >> 4], kHexDigits[c & 15]};
    }
    fail_at(at_, "wanted " + wanted + ", got " + got);
  }

  [[noreturn]] static void fail_at(size_t offset, const std::string& what) {
    throw Error("JSON, byte " + std::to_string(offset) + ": " + what);
  }

  Value parse_value(int depth) {
    skip_space();
    if (++num_values_ > max_values_) {
      fail_at(at_, "wanted at most " + std::to_string(max_values_) + " values, got more");
    }
    const int c = peek();
    if (c == '{') return parse_object(depth + 1);
    if (c == '[') return parse_array(depth + 1);
    if (c == '"') return parse_string();
    if (c == '-' || is_digit(c)) return parse_number();
    for (const auto& [word, value] : {std::pair{"null", Value()}, std::pair{"true", Value(true)},
                                      std::pair{"false", Value(false)}}) {
      if (text_.substr(at_).starts_with(word)) {
        at_ += std::string_view(word).size();
        return value;
      }
    }
    fail("a value");
  }

  void check_depth(int depth) const {
    if (depth > kMaxDepth) {
      fail_at(at_, "wanted at most " + std::to_string(kMaxDepth) + " levels of nesting, got more");
    }
  }

  Value parse_array(int depth) {
    check_depth(depth);
    Array array;
    ++at_;
    skip_space();
    if (take(']')) return array;
    do {
      array.push_back(parse_value(depth));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("',' or ']' after an element");
    return array;
  }

  Value parse_object(int depth) {
    check_depth(depth);
    Object object;
    ++at_;
    skip_space();
    if (take('}')) return object;
    do {
      skip_space();
      if (peek() != '"') fail("a key in quotes");
      const size_t begin = at_;
      std::string key = parse_string();
      const auto [member, is_new] = object.try_emplace(std::move(key));
      if (!is_new)
        fail_at(begin, "wanted each key once, got " + json::quoted(member->first) + " again");
      skip_space();
      if (!take(':')) fail("':' after the key " + json::quoted(member->first));
      member->second = parse_value(depth);
      skip_space();
    } while (take(','));
    if (!take('}')) fail("',' or '}' after a member");
    return object;
  }

  std::string parse_string() {
    std::string out;
    ++at_;
    while (true) {
      const size_t begin = at_;
      while (peek() >= 0x20 && peek() < 0x80 && peek() != '"' && peek() != '\\') ++at_;
      out += text_.substr(begin, at_ - begin);
      if (take('"')) return out;
      if (take('\\')) {
        parse_escape(out);
      } else if (peek() >= 0x80) {
        const size_t size = utf8_size(text_.substr(at_));
        if (size == 0) fail("valid UTF-8");
        out += text_.substr(at_, size);
        at_ += size;
      } else {
        fail("'\"' at the end of a string (control characters are escaped)");
      }
    }
  }

  void parse_escape(std::string& out) {
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (take('u')) {
      append_utf8(out, parse_code_point());
    } else if (const size_t i = peek() < 0 ? std::string_view::npos : kNames.find(text_[at_]);
               i != std::string_view::npos) {
      out += kMeanings[i];
      ++at_;
    } else {
      fail("one of \" \\ / b f n r t u after a backslash");
    }
  }

  // After "\u". Characters above U+FFFF are written as two halves, each an escape of its own.
  uint32_t parse_code_point() {
    const size_t begin = at_;
    const uint32_t first = parse_hex4();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first < 0xDC00 && take('\\') && take('u')) {
      const uint32_t second = parse_hex4();
      if (second >= 0xDC00 && second <= 0xDFFF) {
        return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
      }
    }
    fail_at(begin, "wanted a pair of surrogates, got one alone");
  }

  uint32_t parse_hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const int c = peek();
      if (is_digit(c)) {
        code = code * 16 + static_cast<uint32_t>(c - '0');
      } else if (const int lower = c | 0x20; lower >= 'a' && lower <= 'f') {
        code = code * 16 + static_cast<uint32_t>(lower - 'a' + 10);
      } else {
        fail("four hexadecimal digits after \\u");
      }
      ++at_;
    }
    return code;
  }

  void skip_digits() {
    if (!is_digit(peek())) fail("a digit");
    while (is_digit(peek())) ++at_;
  }

  // from_chars reads more than JSON allows ("01", "inf"), so the grammar is checked first.
  Value parse_number() {
    const size_t begin = at_;
    bool is_integer = true;
    take('-');
    if (!take('0')) skip_digits();
    if (is_digit(peek())) fail("no digit after a leading zero");
    if (take('.')) {
      is_integer = false;
      skip_digits();
    }
    if (take('e') || take('E')) {
      is_integer = false;
      if (!take('+')) take('-');
      skip_digits();
    }
    const std::string_view text = text_.substr(begin, at_ - begin);
    if (is_integer) {
      int64_t integer = 0;
      if (std::from_chars(text.begin(), text.end(), integer).ec == std::errc()) return integer;
    }
    double number = 0;
    const auto [end, error] = std::from_chars(text.begin(), text.end(), number);
    if (error != std::errc() || !std::isfinite(number)) {
      fail_at(begin, "wanted a number in the range of double, got " + json::quoted(text));
    }
    return number;
  }

  std::string_view text_;
  size_t max_values_;
  size_t at_ = 0;
  size_t num_values_ = 0;
};

void append_string(std::string& out, const std::string_view whole) {
  std::string_view text = whole;
  out += '"';
  while (!text.empty()) {
    const size_t size = utf8_size(text);
    if (size == 0) throw Error("JSON: wanted strings in UTF-8, got " + json::quoted(whole));
    const auto c = static_cast<unsigned char>(text[0]);
    constexpr std::string_view kSpecial = "\"\\\b\f\n\r\t";
    if (const size_t i = kSpecial.find(text[0]); i != std::string_view::npos) {
      out += '\\';
      out += "\"\\bfnrt"[i];
    } else if (c < 0x20) {
      out += {'\\', 'u', '0', '0', kHexDigits[c >> 4], kHexDigits[c & 15]};
    } else {
      out += text.substr(0, size);
    }
    text.remove_prefix(size);
  }
  out += '"';
}

void append_double(std::string& out, double number) {
  if (!std::isfinite(number)) {
    throw Error("JSON: wanted a finite number, got " + std::to_string(number));
  }
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), number).ptr;
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));
  out += text;
  if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

void append_value(std::string& out, const Value& value, int indent, int depth);

// The frame that arrays and objects share: brackets, commas, line breaks.
template <class Items, class AppendItem>
void append_items(std::string& out, const char* brackets, const Items& items, int indent, int depth,
                  AppendItem append_item) {
  if (depth >= kMaxDepth) {
    throw Error("JSON: wanted at most " + std::to_string(kMaxDepth) +
                " levels of nesting, got more");
  }
  const auto new_line = [&](int level) {
    if (indent > 0) out.append("\n").append(static_cast<size_t>(indent * level), ' ');
  };
  out += brackets[0];
  bool is_first = true;
  for (const auto& item : items) {
    if (!is_first) out += ',';
    is_first = false;
    new_line(depth + 1);
    append_item(item);
  }
  if (!items.empty()) new_line(depth);
  out += brackets[1];
}

void append_value(std::string& out, const Value& value, int indent, int depth) {
  if (const auto* flag = std::get_if<bool>(&value.data)) {
    out += *flag ? "true" : "false";
  } else if (const auto* integer = std::get_if<int64_t>(&value.data)) {
    out += std::to_string(*integer);
  } else if (const auto* number = std::get_if<double>(&value.data)) {
    append_double(out, *number);
  } else if (const auto* text = std::get_if<std::string>(&value.data)) {
    append_string(out, *text);
  } else if (const auto* array = std::get_if<Array>(&value.data)) {
    append_items(out, "[]", *array, indent, depth,
                 [&](const Value& item) { append_value(out, item, indent, depth + 1); });
  } else if (const auto* object = std::get_if<Object>(&value.data)) {
    append_items(out, "{}", *object, indent, depth, [&](const auto& member) {
      append_string(out, member.first);
      out += indent > 0 ? ": " : ":";
      append_value(out, member.second, indent, depth + 1);
    });
  } else {
    out += "null";
  }
}

std::string described(const Value& value) {
  if (const auto* text = std::get_if<std::string>(&value.data))
    return "the string " + json::quoted(*text);
  if (std::holds_alternative<Array>(value.data)) return "an array";
  if (std::holds_alternative<Object>(value.data)) return "an object";
  if (const auto* number = std::get_if<double>(&value.data)) {
    return "the number " + (std::isfinite(*number) ? dump(value) : std::to_string(*number));
  }
  return dump(value);
}

template <class T>
const T& get(const Value& value, const char* wanted) {
  if (const T* found = std::get_if<T>(&value.data)) return *found;
  throw Error(std::string("wanted ") + wanted + ", got " + described(value));
}

}  // namespace

bool Value::as_bool() const { return get<bool>(*this, "true or false"); }

int64_t Value::as_int() const { return get<int64_t>(*this, "an integer"); }

double Value::as_double() const {
  if (const auto* integer = std::get_if<int64_t>(&data)) return static_cast<double>(*integer);
  return get<double>(*this, "a number");
}

const std::string& Value::as_string() const { return get<std::string>(*this, "a string"); }

const Array& Value::as_array() const { return get<Array>(*this, "an array"); }

const Object& Value::as_object() const { return get<Object>(*this, "an object"); }

const Value* Value::find(std::string_view key) const {
  const Object& object = as_object();
  const auto member = object.find(key);
  return member == object.end() ? nullptr : &member->second;
}

bool Value::operator==(const Value& other) const { return data == other.data; }

Value parse(std::string_view text, size_t max_values) {
  return Parser(text, max_values).parse_text();
}

std::string dump(const Value& value, int indent) {
  std::string out;
  append_value(out, value, indent, 0);
  return out;
}

std::string quoted(std::string_view text) {
  constexpr size_t kShownBytes = 80;
  std::string shown;
  while (!text.empty() && shown.size() < kShownBytes) {
    const size_t size = utf8_size(text);
    shown += size > 0 ? text.substr(0, size) : "?";
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  std::string out;
  append_string(out, shown);
  return text.empty() ? out : out + "...";
}

}  // namespace dpt::json
