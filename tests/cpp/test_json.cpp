#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "dpt/io/json.h"

namespace json = dpt::json;

namespace {

template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const json::Error& error) {
    return error.what();
  }
  return "no error";
}

std::string nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

#define EXPECT_ERROR(call, fragment)                                 \
  do {                                                               \
    const std::string message = error_of([&] { call; });             \
    EXPECT_NE(message.find(fragment), std::string::npos) << message; \
  } while (false)

}  // namespace

TEST(Json, ParsesEveryKind) {
  const json::Value value = json::parse(
      " { \"n\" : null, \"t\": true,\"f\":false,\r\n\t\"i\": -7, \"d\": 0.5, \"s\": \"x\", "
      "\"a\": [1, [], {}] } ");
  EXPECT_EQ(*value.find("n"), json::Value());
  EXPECT_TRUE(value.find("t")->as_bool());
  EXPECT_FALSE(value.find("f")->as_bool());
  EXPECT_EQ(value.find("i")->as_int(), -7);
  EXPECT_EQ(value.find("d")->as_double(), 0.5);
  EXPECT_EQ(value.find("s")->as_string(), "x");
  EXPECT_EQ(value.find("a")->as_array().size(), 3u);
  EXPECT_EQ(value.find("absent"), nullptr);
}

TEST(Json, KeepsIntegersThatFitAndOnlyThose) {
  EXPECT_EQ(json::parse("9223372036854775807").as_int(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(json::parse("-9223372036854775808").as_int(), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(json::parse("9223372036854775808"), json::Value(9223372036854775808.0));
  EXPECT_EQ(json::parse("1.0"), json::Value(1.0));
  EXPECT_EQ(json::parse("1e2"), json::Value(100.0));
  EXPECT_NE(json::parse("1.0"), json::parse("1"));
  EXPECT_EQ(json::parse("1").as_double(), 1.0);
}

TEST(Json, DecodesEscapes) {
  EXPECT_EQ(json::parse(R"("\"\\\/\b\f\n\r\t")").as_string(), "\"\\/\b\f\n\r\t");
  EXPECT_EQ(json::parse(R"("\u0041\u00e9\u20AC\ud83d\ude00")").as_string(),
            "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  EXPECT_EQ(json::parse(R"("\u0000")").as_string(), std::string(1, '\0'));
}

TEST(Json, RefusesMalformedTextAndSaysWhere) {
  const struct {
    std::string text, fragment;
  } cases[] = {
      {"", "byte 0: wanted a value, got the end"},
      {"  ", "byte 2: wanted a value, got the end"},
      {"nul", "byte 0: wanted a value, got 'n'"},
      {"True", "wanted a value, got 'T'"},
      {"NaN", "wanted a value, got 'N'"},
      {"Infinity", "wanted a value"},
      {"// x\n1", "wanted a value, got '/'"},
      {"1 2", "byte 2: wanted the end of the text, got '2'"},
      {std::string("1\0", 2), "byte 1: wanted the end of the text, got byte 0x00"},
      {"\xEF\xBB\xBF{}", "wanted a value, got byte 0xef"},
      {"[1,]", "byte 3: wanted a value, got ']'"},
      {"[1 2]", "wanted ',' or ']'"},
      {"[1", "wanted ',' or ']'"},
      {"{\"a\":1,}", "wanted a key in quotes, got '}'"},
      {"{\"a\" 1}", "wanted ':' after the key \"a\", got '1'"},
      {"{\"a\":1", "wanted ',' or '}'"},
      {"{a:1}", "wanted a key in quotes, got 'a'"},
      {"{'a':1}", "wanted a key in quotes"},
      {"{1:1}", "wanted a key in quotes"},
      {"{\"a\":1,\"\\u0061\":2}", "byte 7: wanted each key once, got \"a\" again"},
      {"01", "no digit after a leading zero"},
      {"-", "wanted a digit"},
      {"+1", "wanted a value"},
      {".5", "wanted a value"},
      {"1.", "wanted a digit"},
      {"1.e5", "wanted a digit"},
      {"1e", "wanted a digit"},
      {"1e+", "wanted a digit"},
      {"0x10", "wanted the end of the text"},
      {"1e400", "wanted a number in the range of double"},
      {"-1e400", "wanted a number in the range of double"},
      {"\"a", "at the end of a string"},
      {"\"a\nb\"", "got byte 0x0a"},
      {std::string("\"a\0b\"", 5), "got byte 0x00"},
      {"\"\\x\"", "after a backslash, got 'x'"},
      {"\"\\", "after a backslash, got the end"},
      {"\"\\u12g4\"", "four hexadecimal digits"},
      {"\"\\ud800\"", "wanted a pair of surrogates"},
      {"\"\\ud800\\u0041\"", "wanted a pair of surrogates"},
      {"\"\\udc00\\ud800\"", "wanted a pair of surrogates"},
      {"\"\x80\"", "wanted valid UTF-8, got byte 0x80"},
      {"\"\xC0\xAF\"", "wanted valid UTF-8"},
      {"\"\xE0\x80\xAF\"", "wanted valid UTF-8"},
      {"\"\xED\xA0\x80\"", "wanted valid UTF-8"},
      {"\"\xF4\x90\x80\x80\"", "wanted valid UTF-8"},
      {"\"\xF0\x9F\x98\"", "wanted valid UTF-8"},
      {"\"\xFF\"", "wanted valid UTF-8"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.text);
    EXPECT_ERROR(json::parse(c.text), c.fragment);
  }
}

TEST(Json, LimitsDepthAndNumberOfValues) {
  EXPECT_NO_THROW(json::parse(nested(json::kMaxDepth)));
  EXPECT_ERROR(json::parse(nested(json::kMaxDepth + 1)), "64 levels");
  EXPECT_ERROR(json::parse(std::string(1'000'000, '[')), "64 levels");
  EXPECT_NO_THROW(json::parse("[1,2]", 3));
  EXPECT_ERROR(json::parse("[1,2,3]", 3), "at most 3 values");
}

TEST(Json, DumpIsCanonical) {
  const json::Value value =
      json::parse("{\"b\": [1, 2.50, \"\\u00e9\\u0001/\"], \"a\": {}, \"c\": [] }");
  EXPECT_EQ(json::dump(value), "{\"a\":{},\"b\":[1,2.5,\"\xC3\xA9\\u0001/\"],\"c\":[]}");
  EXPECT_EQ(json::dump(value, 2),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    2.5,\n    \"\xC3\xA9\\u0001/\"\n  ],\n  "
            "\"c\": []\n}");
  EXPECT_EQ(json::parse(json::dump(value, 2)), value);
}

TEST(Json, DoublesReadBackTheSameAndStayDoubles) {
  EXPECT_EQ(json::dump(1.0), "1.0");
  EXPECT_EQ(json::dump(0.1), "0.1");
  EXPECT_EQ(json::dump(1e22), "1e+22");
  EXPECT_TRUE(std::signbit(json::parse(json::dump(-0.0)).as_double()));
  for (const double number : {5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1.0 / 3,
                              1e15, 123456789012345678.0, 1e-5}) {
    const json::Value parsed = json::parse(json::dump(number));
    EXPECT_EQ(parsed, json::Value(number)) << json::dump(number);
  }
}

TEST(Json, DumpRefusesWhatJsonCannotHold) {
  EXPECT_ERROR(json::dump(std::numeric_limits<double>::quiet_NaN()), "wanted a finite number");
  EXPECT_ERROR(json::dump(std::numeric_limits<double>::infinity()), "wanted a finite number");
  EXPECT_ERROR(json::dump("a\xFF"), "wanted strings in UTF-8, got \"a?\"");
  json::Value deep;
  for (int i = 0; i <= json::kMaxDepth; ++i) {
    json::Array outer;
    outer.push_back(std::move(deep));
    deep = std::move(outer);
  }
  EXPECT_ERROR(json::dump(deep), "64 levels");
}

TEST(Json, AccessorsNameTheKindThatCame) {
  EXPECT_ERROR(json::parse("2.0").as_int(), "wanted an integer, got the number 2.0");
  EXPECT_ERROR(json::parse("\"x\"").as_double(), "wanted a number, got the string \"x\"");
  EXPECT_ERROR(json::parse("1").as_bool(), "wanted true or false, got 1");
  EXPECT_ERROR(json::parse("null").as_string(), "wanted a string, got null");
  EXPECT_ERROR(json::parse("{}").as_array(), "wanted an array, got an object");
  EXPECT_ERROR(json::parse("[]").as_object(), "wanted an object, got an array");
  EXPECT_ERROR(json::parse("[]").find("a"), "wanted an object");
}

TEST(Json, QuotedCutsLongTextBetweenCharacters) {
  EXPECT_EQ(json::quoted("a\n\xFF"), "\"a\\n?\"");
  std::string text;
  for (int i = 0; i < 100; ++i) text += "\xE2\x82\xAC";
  const std::string shown = json::quoted(text);
  EXPECT_LT(shown.size(), 90u);
  EXPECT_TRUE(shown.ends_with("\xE2\x82\xAC\"..."));
}
