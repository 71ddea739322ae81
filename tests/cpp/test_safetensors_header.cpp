#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "dpt/io/safetensors.h"
#include "dpt/io/safetensors_header.h"
#include "files.h"

namespace {

// As make_file, but the length is claimed, not counted.
std::string make_file_of_length(uint64_t length, const std::string& header) {
  std::string bytes = make_file(header);
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  return bytes;
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
