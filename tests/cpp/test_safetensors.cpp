#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include "dpt/io/safetensors.h"
#include "dpt/io/safetensors_header.h"
#include "files.h"

namespace fs = std::filesystem;
using at::Tensor;

namespace {

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

// What was written to its whole pages is gone with a tensor, while others of the file live on.
TEST(Safetensors, TensorsGiveTheirPagesBack) {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  constexpr int64_t kCount = 100'003;  // no whole number of pages
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const char* name : {"a", "b", "c"}) tensors.emplace_back(name, at::ones({kCount}));
  dpt::write_safetensors(path, tensors, {});
  dpt::Safetensors file = dpt::read_safetensors(path);
  for (auto& [name, tensor] : file.tensors) tensor.fill_(7);
  const auto* b = file.tensors.at("b").const_data_ptr<float>();
  file.tensors.erase("b");
  EXPECT_EQ(b[0], 7);  // the other part of this page is a's
  EXPECT_EQ(b[kCount / 2], 1);
  EXPECT_EQ(b[kCount - 1], 7);
  expect_same(file.tensors.at("a"), at::full({kCount}, 7.0f));
  expect_same(file.tensors.at("c"), at::full({kCount}, 7.0f));
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
  expect_same(dpt::read_safetensors(path).tensors.at("a"), at::tensor({0, 0, 1}).to(at::kBool));
  bytes.back() = 2;
  write_bytes(path, bytes);
  EXPECT_CONTAINS(value_error_of([&] { dpt::read_safetensors(path); }), "BOOL tensor 'a'");
}
