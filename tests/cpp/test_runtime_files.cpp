// Files of frozen models that are damaged; those that are another's: tests/python/test_frozen.py.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstring>
#include <random>

#include "dpt/runtime/frozen_model.h"
#include "files.h"
#include "runtime_networks.h"

namespace {

class FrozenFile : public testing::Test {
 protected:
  FrozenFile() {
    torch::manual_seed(0);
    const dpt::Model model = runtime_test::random_model(runtime_test::small(), at::kFloat);
    dpt::freeze(model).save(path, {{"processor", "{}"}});
    bytes = read_bytes(path);
    uint64_t length;
    std::memcpy(&length, bytes.data(), sizeof(length));
    header = sizeof(length) + length;
  }

  // Whether the file is refused. If not it must predict: with damaged numbers, it may be.
  bool refused(const std::string& damaged) {
    write_bytes(path, damaged);
    try {
      const dpt::FrozenModel loaded = dpt::FrozenModel::load(path, 1);
      EXPECT_EQ(loaded(torch::zeros({1, 3, 64, 64})).depth.sizes(), at::IntArrayRef({1, 64, 64}));
    } catch (const c10::ValueError&) {  // anything else ends the test
      return true;
    }
    return false;
  }

  Folder folder;
  const std::string path = folder / "model.frozen";
  std::string bytes;
  size_t header = 0;  // bytes before the tensors
};

TEST_F(FrozenFile, TruncatedIsRefused) {
  ASSERT_FALSE(refused(bytes));
  std::mt19937 random(1);
  std::vector<size_t> lengths = {0, 1, 7, 8, 9, header - 1, header, header + 1, bytes.size() - 1};
  for (int i = 0; i < 20; ++i) lengths.push_back(random() % bytes.size());
  for (const size_t length : lengths) EXPECT_TRUE(refused(bytes.substr(0, length))) << length;
}

TEST_F(FrozenFile, WithAFlippedBitIsRefusedOrPredicts) {
  std::mt19937 random(2);
  int num_refused = 0;
  for (int i = 0; i < 200; ++i) {
    std::string damaged = bytes;
    const size_t at = random() % (i % 8 == 0 ? bytes.size() : header);
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
    SCOPED_TRACE(std::to_string(at));
    num_refused += refused(damaged) ? 1 : 0;
  }
  EXPECT_GT(num_refused, 100) << "most of a header is names, shapes and offsets";
}

}  // namespace
