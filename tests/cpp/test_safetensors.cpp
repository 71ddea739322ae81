#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "dpt/io/safetensors.h"
#include "dpt/io/safetensors_header.h"

namespace fs = std::filesystem;
using at::Tensor;

namespace {

// A folder that goes with the test.
struct Folder {
  fs::path path;

  Folder() {
    std::string name = (fs::temp_directory_path() / "dpt-test-XXXXXX").string();
    path = ::mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path); }

  std::string operator/(const std::string& name) const { return (path / name).string(); }

  size_t num_files() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(path), fs::directory_iterator()));
  }
};

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The bytes of a file with any header, and zeros as data.
std::string make_file(const std::string& header, size_t data_bytes = 0) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i));
  return bytes + header + std::string(data_bytes, '\0');
}

// As make_file, but the length is claimed, not counted.
std::string make_file_of_length(uint64_t length, const std::string& header) {
  std::string bytes = make_file(header);
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  return bytes;
}

// A file of the single tensor "a".
std::string make_tensor_file(const std::string& dtype, const std::string& shape,
                             const std::string& offsets, size_t data_bytes) {
  return make_file(
      "{\"a\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}",
      data_bytes);
}

std::string make_entry(const std::string& name, int num_bytes, int begin, int end) {
  return "\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(num_bytes) +
         "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

// An exact copy on the heap, where a sanitizer sees a read past the end.
dpt::SafetensorsHeader parse(const std::string& bytes) {
  const std::vector<unsigned char> file(bytes.begin(), bytes.end());
  return dpt::parse_safetensors_header(file);
}

template <class Error, class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

template <class Call>
std::string value_error_of(Call call) {
  return error_of<c10::ValueError>(call);
}

#define EXPECT_CONTAINS(text, fragment) EXPECT_PRED2(contains, text, fragment)
bool contains(const std::string& text, const std::string& fragment) {
  return text.find(fragment) != std::string::npos;
}

struct Malformed {
  std::string name, bytes, fragment;
};

std::vector<Malformed> malformed_files() {
  const std::string f32 = "\"F32\"", u8 = "\"U8\"";
  std::vector<Malformed> files = {
      // The frame. Lengths that wrap when 8 is added reached past the buffer in unchecked readers.
      {"EmptyFile", "", "wanted at least 8 bytes"},
      {"SevenBytes", std::string(7, '\0'), "got a file of 7"},
      {"LengthZero", make_file(""), "begins with '{'"},
      {"LengthWithoutHeader", make_file_of_length(2, ""),
       "wanted 2 bytes, got a file that ends after 0"},
      {"LengthOneTooLarge", make_file_of_length(3, "{}"),
       "wanted 3 bytes, got a file that ends after 2"},
      {"LengthOneTooSmall", make_file_of_length(1, "{}"), "wanted a key in quotes, got the end"},
      {"LengthAboveCap", make_file_of_length(100'000'001, "{}"),
       "at most 100000000 bytes, got 100000001"},
      {"LengthHuge", make_file_of_length(uint64_t{1} << 63, "{}"), "at most 100000000"},
      {"LengthWrapsAround", make_file_of_length(~uint64_t{0} - 7, "{}"), "at most 100000000"},
      {"LengthBigEndian", std::string(7, '\0') + "\x02{}", "at most 100000000"},
      {"ZipArchive", "PK\x03\x04" + std::string(60, '\0'), "got a file that ends after 56"},
      {"Pickle", "\x80\x02}q\x01(X\x01\x02.", "at most 100000000"},
      {"HtmlPage", "<!DOCTYPE html><html></html>", "at most 100000000"},
      {"LeadingSpace", make_file(" {}"), "begins with '{'"},
      {"ByteOrderMark", make_file("\xEF\xBB\xBF{}"), "begins with '{'"},
      {"HeaderIsArray", make_file("[{}]"), "begins with '{'"},
      {"HeaderIsString", make_file("\"{}\""), "begins with '{'"},

      // The JSON.
      {"JsonTruncated", make_file("{\"a\":"), "wanted a value, got the end"},
      {"JsonGarbage", make_file("{\xDE\xAD\xBE\xEF}"), "wanted a key in quotes, got byte 0xde"},
      {"JsonTwice", make_file("{}{}"), "byte 2: wanted the end of the text, got '{'"},
      {"JsonPaddedWithNul", make_file(std::string("{}\0\0", 4)), "got byte 0x00"},
      {"JsonTrailingComma", make_file("{" + make_entry("a", 1, 0, 1) + ",}", 1),
       "wanted a key in quotes"},
      {"JsonSingleQuotes", make_file("{'a':1}"), "wanted a key in quotes"},
      {"JsonComment", make_file("{/**/}"), "wanted a key in quotes, got '/'"},
      {"NulInName", make_file("{" + make_entry(std::string("a\0b", 3), 1, 0, 1) + "}", 1),
       "byte 0x00"},
      {"LineBreakInName", make_file("{" + make_entry("a\nb", 1, 0, 1) + "}", 1), "byte 0x0a"},
      {"InvalidUtf8", make_file("{" + make_entry("a\xFF", 1, 0, 1) + "}", 1), "wanted valid UTF-8"},
      {"OverlongUtf8", make_file("{" + make_entry("\xC0\xAF", 1, 0, 1) + "}", 1),
       "wanted valid UTF-8"},
      {"SurrogateInUtf8", make_file("{" + make_entry("\xED\xA0\x80", 1, 0, 1) + "}", 1),
       "wanted valid UTF-8"},
      {"SurrogateAlone", make_file("{" + make_entry("\\ud800", 1, 0, 1) + "}", 1),
       "pair of surrogates"},
      {"UnknownEscape", make_file("{" + make_entry("\\x41", 1, 0, 1) + "}", 1),
       "after a backslash"},
      {"NestedArrays", make_file("{\"a\":" + std::string(100'000, '[')), "64 levels"},
      {"NestedObjects", make_file([] {
         std::string text;
         for (int i = 0; i < 100'000; ++i) text += "{\"a\":";
         return text;
       }()),
       "64 levels"},
      {"ManyValues", make_file([] {
         std::string text = "{\"a\":[0";
         for (int i = 0; i < 3'000'000; ++i) text += ",0";
         return text + "]}";
       }()),
       "values, got more"},
      {"DuplicateTensor",
       make_file("{" + make_entry("a", 1, 0, 1) + "," + make_entry("a", 1, 1, 2) + "}", 2),
       "wanted each key once, got \"a\" again"},
      {"DuplicateTensorEscaped",
       make_file("{" + make_entry("a", 1, 0, 1) + "," + make_entry("\\u0061", 1, 1, 2) + "}", 2),
       "wanted each key once, got \"a\" again"},
      {"DuplicateField",
       make_file("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[9],\"data_offsets\":[0,1]}}",
                 1),
       "wanted each key once, got \"shape\" again"},
      {"DuplicateMetadata", make_file("{\"__metadata__\":{},\"__metadata__\":{}}"),
       "wanted each key once"},

      // One tensor's fields.
      {"TensorIsNull", make_file("{\"a\":null}"), "tensor \"a\": wanted an object, got null"},
      {"TensorIsArray", make_file("{\"a\":[\"U8\",[1],[0,1]]}", 1),
       "wanted an object, got an array"},
      {"NoDtype", make_file("{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "got no dtype"},
      {"NoShape", make_file("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1),
       "got no shape"},
      {"NoOffsets", make_file("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1),
       "got no data_offsets"},
      {"UnknownField",
       make_file("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"strides\":[1]}}",
                 1),
       "got the key \"strides\""},
      {"UnknownDtype", make_tensor_file("\"F8_E4M3\"", "[1]", "[0,1]", 1), "got \"F8_E4M3\""},
      {"DtypeInLowerCase", make_tensor_file("\"f32\"", "[1]", "[0,4]", 4), "got \"f32\""},
      {"DtypeWithNul", make_tensor_file("\"F32\\u0000\"", "[1]", "[0,4]", 4), "got \"F32\\u0000\""},
      {"DtypeIsNumber", make_tensor_file("32", "[1]", "[0,4]", 4), "wanted a string, got 32"},
      {"ShapeIsNumber", make_tensor_file(u8, "1", "[0,1]", 1), "wanted an array, got 1"},
      {"ShapeIsNested", make_tensor_file(u8, "[[1]]", "[0,1]", 1),
       "wanted an integer, got an array"},
      {"DimIsFloat", make_tensor_file(u8, "[2.0]", "[0,2]", 2),
       "wanted an integer, got the number 2.0"},
      {"DimHasExponent", make_tensor_file(u8, "[1e1]", "[0,10]", 10), "wanted an integer"},
      {"DimIsString", make_tensor_file(u8, "[\"1\"]", "[0,1]", 1),
       "wanted an integer, got the string \"1\""},
      {"DimIsBool", make_tensor_file(u8, "[true]", "[0,1]", 1), "wanted an integer, got true"},
      {"DimIsNan", make_tensor_file(u8, "[NaN]", "[0,1]", 1), "wanted a value, got 'N'"},
      {"DimHasLeadingZero", make_tensor_file(u8, "[01]", "[0,1]", 1), "leading zero"},
      {"DimIsNegative", make_tensor_file(u8, "[-1]", "[0,1]", 1),
       "dimensions of 0 or more, got shape [-1]"},
      {"DimsAreNegativeInPairs", make_tensor_file(u8, "[-2,-2]", "[0,4]", 4), "got shape [-2,-2]"},
      {"DimAboveInt64", make_tensor_file(u8, "[18446744073709551617]", "[0,1]", 1),
       "wanted an integer"},
      {"DimOutsideDouble", make_tensor_file(u8, "[1e999]", "[0,1]", 1), "range of double"},
      // The product wraps to 0: safetensors-cpp made a tensor of 2^64 elements on no bytes.
      {"ShapeProductWrapsToZero", make_tensor_file(f32, "[4294967296,4294967296]", "[0,0]", 0),
       "overflows"},
      {"ShapeProductWrapsToSmall", make_tensor_file(u8, "[4294967297,4294967295,1]", "[0,1]", 1),
       "overflows"},
      {"ByteCountWraps", make_tensor_file(f32, "[4611686018427387905]", "[0,4]", 4), "overflows"},
      {"ZeroHidesOverflow", make_tensor_file(u8, "[0,4294967296,4294967296]", "[0,0]", 0),
       "overflows"},
      {"RankAboveCap", make_tensor_file(u8, "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]", 1),
       "at most 16 dimensions, got 17"},
      {"OffsetsAreNumber", make_tensor_file(u8, "[1]", "1", 1), "wanted an array, got 1"},
      {"OffsetAlone", make_tensor_file(u8, "[1]", "[1]", 1),
       "wanted two data_offsets, begin and end, got 1"},
      {"OffsetsAreThree", make_tensor_file(u8, "[1]", "[0,1,1]", 1), "wanted two data_offsets"},
      {"OffsetIsNegative", make_tensor_file(u8, "[1]", "[-1,0]", 1),
       "data_offsets of 0 or more, got -1"},
      {"OffsetIsFloat", make_tensor_file(u8, "[1]", "[0,1.0]", 1),
       "wanted an integer, got the number 1.0"},
      {"OffsetAboveInt64", make_tensor_file(u8, "[1]", "[0,18446744073709551617]", 1),
       "wanted an integer"},
      {"OffsetsReversed", make_tensor_file(u8, "[1]", "[1,0]", 1),
       "wanted data_offsets in order, got 1 to 0"},
      // MLX issue 3364: offsets went unchecked into a pointer.
      {"EndPastData", make_tensor_file(f32, "[4]", "[0,16]", 12),
       "within the 12 bytes of data, got 0 to 16"},
      {"BothPastData", make_tensor_file(f32, "[1]", "[1000000,1000004]", 4), "past the end"},
      {"OffsetsNearInt64",
       make_tensor_file(u8, "[1]", "[9223372036854775806,9223372036854775807]", 1), "past the end"},
      {"EmptyTensorPastData", make_tensor_file(u8, "[0]", "[2,2]", 1), "past the end"},
      // csafetensors: the shape, not the offsets, was trusted for the size of the read.
      {"ShapeLargerThanOffsets", make_tensor_file(f32, "[1000]", "[0,4]", 4),
       "wanted 4000 bytes for shape [1000]"},
      {"ShapeSmallerThanOffsets", make_tensor_file(f32, "[1]", "[0,8]", 8),
       "wanted 4 bytes for shape [1] of F32"},
      {"ScalarWithoutBytes", make_tensor_file(f32, "[]", "[0,0]", 0),
       "wanted 4 bytes for shape []"},
      {"DtypeLargerThanOffsets", make_tensor_file("\"F64\"", "[2]", "[0,8]", 8), "wanted 16 bytes"},

      // The tiling.
      {"Overlap",
       make_file("{" + make_entry("a", 4, 0, 4) + "," + make_entry("b", 4, 2, 6) + "}", 6),
       "tensor \"b\" overlaps the one before it: wanted it to begin at byte 4"},
      {"SameBytesTwice",
       make_file("{" + make_entry("a", 4, 0, 4) + "," + make_entry("b", 4, 0, 4) + "}", 4),
       "tensor \"b\" overlaps"},
      {"EmptyTensorInsideAnother",
       make_file("{" + make_entry("a", 4, 0, 4) + "," + make_entry("b", 0, 2, 2) + "}", 4),
       "\"b\" overlaps"},
      {"HoleAtStart", make_file("{" + make_entry("a", 1, 1, 2) + "}", 2),
       "tensor \"a\" leaves a hole before it: wanted it to begin at byte 0 of the data, got 1"},
      {"HoleBetween",
       make_file("{" + make_entry("a", 1, 0, 1) + "," + make_entry("b", 1, 2, 3) + "}", 3),
       "tensor \"b\" leaves a hole"},
      {"TrailingByte", make_file("{" + make_entry("a", 1, 0, 1) + "}", 2),
       "wanted 1 bytes of data"},
      {"TrailingBytesWithoutTensors", make_file("{}", 8),
       "wanted 0 bytes of data for its tensors, got 8"},
      {"DataMissing", make_file("{" + make_entry("a", 1, 0, 1) + "}"),
       "within the 0 bytes of data"},

      // The metadata.
      {"MetadataIsString", make_file("{\"__metadata__\":\"x\"}"),
       "strings to strings: wanted an object"},
      {"MetadataIsNull", make_file("{\"__metadata__\":null}"), "strings to strings"},
      {"MetadataHoldsNumber", make_file("{\"__metadata__\":{\"a\":1}}"), "wanted a string, got 1"},
      {"MetadataHoldsObject", make_file("{\"__metadata__\":{\"a\":{}}}"),
       "wanted a string, got an object"},
      {"MetadataIsTensor", make_file("{" + make_entry("__metadata__", 1, 0, 1) + "}", 1),
       "strings to strings"},
  };
  std::string many;
  for (int i = 0; i <= 100'001; ++i)
    many += (i > 0 ? "," : "{") + make_entry(std::to_string(i), 0, 0, 0);
  files.push_back({"ManyTensors", make_file(many + "}"), "wanted at most 100000 tensors"});
  return files;
}

std::vector<at::ScalarType> all_dtypes() {
  return {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong,
          at::kInt,    at::kShort, at::kChar, at::kByte,     at::kBool};
}

void expect_same(const Tensor& actual, const Tensor& expected) {
  EXPECT_EQ(actual.scalar_type(), expected.scalar_type());
  EXPECT_EQ(actual.sizes(), expected.sizes());
  EXPECT_TRUE(actual.is_contiguous());
  EXPECT_TRUE(at::equal(actual, expected));
}

}  // namespace

TEST(SafetensorsHeader, RejectsEveryMalformedFile) {
  const Folder folder;
  const std::string path = folder / "malformed.safetensors";
  for (const Malformed& file : malformed_files()) {
    SCOPED_TRACE(file.name);
    EXPECT_CONTAINS(error_of<std::invalid_argument>([&] { parse(file.bytes); }), file.fragment);
    write_bytes(path, file.bytes);
    const std::string message = value_error_of([&] { dpt::read_safetensors(path); });
    EXPECT_CONTAINS(message, file.fragment);
    EXPECT_CONTAINS(message, path);
  }
}

TEST(SafetensorsHeader, RejectsEveryTruncationOfAValidFile) {
  const std::string bytes =
      make_file("{" + make_entry("a", 3, 0, 3) + "," + make_entry("b", 2, 3, 5) + "}", 5);
  EXPECT_NO_THROW(parse(bytes));
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(parse(bytes.substr(0, size)), std::invalid_argument) << size;
  }
}

TEST(SafetensorsHeader, SortsTensorsByOffset) {
  const auto header =
      parse(make_file("{" + make_entry("a", 2, 1, 3) + "," + make_entry("b", 1, 0, 1) + "," +
                          make_entry("c", 0, 1, 1) + "}  ",
                      3));
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "b");
  EXPECT_EQ(header.tensors[1].name, "c");
  EXPECT_EQ(header.tensors[2].name, "a");
  EXPECT_EQ(header.tensors[2].begin, 1u);
  EXPECT_EQ(header.tensors[2].end, 3u);
}

TEST(SafetensorsHeader, AcceptsAFileWithoutTensors) {
  EXPECT_EQ(parse(make_file("{}")).data_start, 10u);
  EXPECT_EQ(parse(make_file("{\"__metadata__\":{\"k\":\"v\"}}")).metadata.at("k"), "v");
}

TEST(SafetensorsHeader, FormatPadsAndParsesBack) {
  const std::vector<dpt::TensorEntry> tensors = {{"b", "F32", {2, 1}, 0, 8}, {"a", "U8", {}, 8, 9}};
  const std::string text = dpt::format_safetensors_header(tensors, {{"k", "v"}});
  EXPECT_EQ(text.size() % 8, 0u);
  const auto header = parse(text + std::string(9, '\0'));
  EXPECT_EQ(header.data_start, text.size());
  EXPECT_EQ(header.metadata.at("k"), "v");
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].name, "b");
  EXPECT_EQ(header.tensors[0].shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(header.tensors[1].dtype, "U8");
}

TEST(Safetensors, RoundTripsEveryDtype) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const auto dtype : all_dtypes()) {
    // 3 * 5 items: an odd number of bytes for the small dtypes.
    tensors.emplace_back(at::toString(dtype), at::randint(0, 2, {3, 5}, at::kFloat).to(dtype));
  }
  dpt::write_safetensors(path, tensors, {});
  const dpt::Safetensors file = dpt::read_safetensors(path);
  EXPECT_EQ(file.tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    SCOPED_TRACE(name);
    const Tensor& read = file.tensors.at(name);
    expect_same(read, tensor);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(read.const_data_ptr()) % tensor.element_size(), 0u);
  }
}

TEST(Safetensors, RoundTripsSpecialFloatsBitForBit) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  const Tensor bits = at::tensor({0x7FC00001, -1, INT32_MIN, 1, 0x7F800000}, at::kInt);
  dpt::write_safetensors(path, {{"a", bits.view(at::kFloat)}}, {});
  expect_same(dpt::read_safetensors(path).tensors.at("a").view(at::kInt), bits);
}

TEST(Safetensors, RoundTripsAnyShapeAndStride) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  const Tensor base = at::randn({2, 3, 4, 5});
  const std::vector<std::pair<std::string, Tensor>> tensors = {
      {"scalar", at::scalar_tensor(1.5)},
      {"empty", at::empty({0})},
      {"empty_inside", at::empty({3, 0, 2}, at::kHalf)},
      {"transposed", base.transpose(1, 3)},
      {"channels_last", base.contiguous(at::MemoryFormat::ChannelsLast)},
      {"slice", base.slice(3, 1, 5, 2)},
      {"expanded", at::randn({1, 3}).expand({4, 3})},
      {"negated_view", at::_neg_view(base)},
      {"needs_grad", at::randn({2}).requires_grad_()},
  };
  dpt::write_safetensors(path, tensors, {});
  const dpt::Safetensors file = dpt::read_safetensors(path);
  for (const auto& [name, tensor] : tensors) {
    SCOPED_TRACE(name);
    expect_same(file.tensors.at(name), tensor);
    EXPECT_FALSE(file.tensors.at(name).requires_grad());
  }
}

TEST(Safetensors, RoundTripsUnicodeAndAwkwardStrings) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  const std::map<std::string, std::string> metadata = {
      {"format", "pt"},
      {"", ""},
      {"\xC3\xA9\xF0\x9F\x98\x80", "\"\\\n\t\x01/"},
      {"nul", std::string(1, '\0')}};
  dpt::write_safetensors(path, {{"\xE6\xB7\xB1.\"w\"", at::ones({1})}, {"", at::ones({2})}},
                         metadata);
  const dpt::Safetensors file = dpt::read_safetensors(path);
  EXPECT_EQ(file.metadata, metadata);
  EXPECT_TRUE(file.tensors.contains("\xE6\xB7\xB1.\"w\""));
  EXPECT_TRUE(file.tensors.contains(""));
}

TEST(Safetensors, RoundTripsNothing) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  dpt::write_safetensors(path, {}, {});
  const dpt::Safetensors file = dpt::read_safetensors(path);
  EXPECT_TRUE(file.tensors.empty());
  EXPECT_TRUE(file.metadata.empty());
}

TEST(Safetensors, EqualInputGivesEqualBytesInAnyOrder) {
  const Folder folder;
  const Tensor a = at::randn({3}), b = at::ones({5}, at::kHalf);
  dpt::write_safetensors(folder / "1", {{"a", a}, {"b", b}}, {{"k", "v"}});
  dpt::write_safetensors(folder / "2", {{"b", b}, {"a", a}}, {{"k", "v"}});
  EXPECT_EQ(read_bytes(folder / "1"), read_bytes(folder / "2"));
}

TEST(Safetensors, ReadsWithoutCopying) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  dpt::write_safetensors(path, {{"a", at::ones({4})}, {"b", at::ones({4})}}, {});
  const dpt::Safetensors file = dpt::read_safetensors(path);
  const auto* a = file.tensors.at("a").const_data_ptr<float>();
  EXPECT_EQ(a + 4, file.tensors.at("b").const_data_ptr<float>());
}

TEST(Safetensors, CopiesWhatIsNotAligned) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  const float values[] = {1.0f, 2.0f};
  // Some padding out of four leaves each possible misalignment.
  for (size_t padding = 0; padding < 4; ++padding) {
    const std::string header = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    write_bytes(path, make_file(header + std::string(padding, ' ')) +
                          std::string(reinterpret_cast<const char*>(values), sizeof(values)));
    const Tensor a = dpt::read_safetensors(path).tensors.at("a");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.const_data_ptr()) % sizeof(float), 0u);
    expect_same(a, at::tensor({1.0f, 2.0f}));
  }
}

TEST(Safetensors, TensorsOutliveTheFileAndItsStruct) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  const Tensor expected = at::randn({1000});
  dpt::write_safetensors(path, {{"a", expected}, {"b", at::ones({3})}}, {});
  const Tensor part = dpt::read_safetensors(path).tensors.at("a").slice(0, 10, 20);
  fs::remove(path);
  expect_same(part, expected.slice(0, 10, 20));
}

TEST(Safetensors, InPlaceWritesStayInTheTensor) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  dpt::write_safetensors(path, {{"a", at::ones({1000})}}, {});
  const std::string before = read_bytes(path);
  Tensor a = dpt::read_safetensors(path).tensors.at("a");
  a.fill_(7);
  EXPECT_EQ(read_bytes(path), before);
  expect_same(dpt::read_safetensors(path).tensors.at("a"), at::ones({1000}));
  expect_same(a, at::full({1000}, 7.0f));
}

TEST(Safetensors, WritesOverTheFileItsTensorsAreMappedFrom) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  dpt::write_safetensors(path, {{"a", at::ones({5000})}}, {});
  Tensor a = dpt::read_safetensors(path).tensors.at("a");
  a.add_(1);
  dpt::write_safetensors(path, {{"a", a}}, {});
  expect_same(dpt::read_safetensors(path).tensors.at("a"), at::full({5000}, 2.0f));
  expect_same(a, at::full({5000}, 2.0f));
  EXPECT_EQ(folder.num_files(), 1u);
}

TEST(Safetensors, FailedWriteLeavesTheOldFileAndNoOther) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  dpt::write_safetensors(path, {{"a", at::ones({3})}}, {});
  const std::string before = read_bytes(path);

  // The limit on file size stands in for a full disk.
  rlimit old_limit = {};
  ::getrlimit(RLIMIT_FSIZE, &old_limit);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {4096, old_limit.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const std::string message =
      value_error_of([&] { dpt::write_safetensors(path, {{"a", at::ones({100'000})}}, {}); });
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);

  EXPECT_CONTAINS(message, "could not write '" + path + "' (File too large)");
  EXPECT_EQ(read_bytes(path), before);
  EXPECT_EQ(folder.num_files(), 1u);
}

TEST(Safetensors, RefusesToWriteWhatTheFormatCannotHold) {
  const Folder folder;
  const Tensor one = at::ones({1});
  const struct {
    std::vector<std::pair<std::string, Tensor>> tensors;
    std::map<std::string, std::string> metadata;
    std::string fragment;
  } cases[] = {
      {{{"w", Tensor()}}, {}, "tensor 'w' is undefined"},
      {{{"w", at::ones({1}, at::kComplexFloat)}}, {}, "'w' has dtype ComplexFloat"},
      {{{"w", one.to_sparse()}}, {}, "wanted dense tensors with data, got 'w' of layout Sparse"},
      {{{"w", at::ones({1}, at::device(at::kMeta))}}, {}, "on meta"},
      {{{"w", one}, {"w", one}}, {}, "wanted each tensor name once"},
      {{{"__metadata__", one}}, {}, "none __metadata__"},
      {{{"\xFF", one}}, {}, "wanted strings in UTF-8"},
      {{}, {{"k", "\xFF"}}, "wanted strings in UTF-8"},
      {{{"w", at::ones(std::vector<int64_t>(17, 1))}}, {}, "at most 16 dimensions, got 17"},
  };
  for (const auto& c : cases) {
    EXPECT_CONTAINS(
        value_error_of([&] { dpt::write_safetensors(folder / "a", c.tensors, c.metadata); }),
        c.fragment);
  }
  EXPECT_EQ(folder.num_files(), 0u);
}

TEST(Safetensors, NamesThePathInErrors) {
  const Folder folder;
  const auto read = [](const std::string& path) {
    return value_error_of([&] { dpt::read_safetensors(path); });
  };
  const auto write = [](const std::string& path) {
    return value_error_of([&] { dpt::write_safetensors(path, {}, {}); });
  };
  const std::string missing = folder / "missing", pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_CONTAINS(read(missing), "got '" + missing + "' (No such file or directory)");
  EXPECT_CONTAINS(read(folder.path), "which is a folder");
  EXPECT_CONTAINS(read(pipe), "wanted a regular file, got '" + pipe);
  EXPECT_CONTAINS(read(""), "got nothing");
  EXPECT_CONTAINS(read(std::string("a\0b", 3)), "a zero byte");
  EXPECT_CONTAINS(write(folder.path), "got the folder");
  EXPECT_CONTAINS(write(folder / "missing/a"), "could not create a file in '" + missing + "'");
  EXPECT_CONTAINS(write(folder / std::string(300, 'x')), "File name too long");
  EXPECT_EQ(folder.num_files(), 1u);  // the pipe
}

TEST(Safetensors, RejectsBoolBytesOtherThanZeroAndOne) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  std::string bytes = make_tensor_file("\"BOOL\"", "[3]", "[0,3]", 3);
  bytes.back() = 1;
  write_bytes(path, bytes);
  expect_same(dpt::read_safetensors(path).tensors.at("a"), at::tensor({0, 0, 1}, at::kBool));
  bytes.back() = 2;
  write_bytes(path, bytes);
  EXPECT_CONTAINS(value_error_of([&] { dpt::read_safetensors(path); }), "BOOL tensor 'a'");
}
