// csrc/dpt/io/atomic_file.h -- files that appear whole or not at all.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "dpt/common.h"

namespace dpt {

// Writes to a temporary name in the folder of `path`; commit() renames. A reader sees the old file
// or the new one, after a crash too. Without commit() the destructor removes what was written. A
// symbolic link at `path` is replaced, not followed. Errors (ValueError in Python) name `function`,
// the path and the system's reason.
class AtomicFile {
 public:
  AtomicFile(std::string path, const char* function);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(const void* data, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  std::string path_;
  const char* function_;
  std::filesystem::path folder_, temporary_;
  int descriptor_ = -1;
  bool committed_ = false;
};

}  // namespace dpt
