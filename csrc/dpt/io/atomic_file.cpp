#include "dpt/io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

namespace dpt {

namespace {

std::string system_message(int error) { return std::generic_category().message(error); }

}  // namespace

AtomicFile::AtomicFile(std::string path, const char* function)
    : path_(std::move(path)), function_(function) {
  std::error_code ignored;
  TORCH_CHECK_VALUE(!std::filesystem::is_directory(path_, ignored), function_,
                    ": wanted the name of a file, got the folder '", path_, "'; add a file name");
  folder_ = std::filesystem::path(path_).parent_path();
  if (folder_.empty()) folder_ = ".";
  // O_EXCL makes the name ours, among threads and machines that share the folder. The name is short
  // and does not hold the final one, which may have the greatest length allowed already.
  for (int i = 0; descriptor_ < 0; ++i) {
    temporary_ =
        folder_ / (".dpt-" + std::to_string(::getpid()) + "-" + std::to_string(i) + ".tmp");
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    TORCH_CHECK_VALUE(descriptor_ >= 0 || errno == EEXIST, function_,
                      ": could not create a file in '", folder_.string(), "' (",
                      system_message(errno), "); check that the folder exists and is writable");
  }
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(descriptor_, at, size);
    if (written < 0 && errno == EINTR) continue;
    TORCH_CHECK_VALUE(written > 0, function_, ": could not write '", path_, "' (",
                      system_message(errno), "); ", size,
                      " bytes more were wanted, make room or choose another folder");
    at += written;
    size -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  // Without the two fsync calls a crash after the rename could leave an empty file under the new
  // name.
  TORCH_CHECK_VALUE(::fsync(descriptor_) == 0, function_, ": could not write '", path_, "' (",
                    system_message(errno), "); check the disk");
  TORCH_CHECK_VALUE(std::rename(temporary_.c_str(), path_.c_str()) == 0, function_,
                    ": could not rename '", temporary_.string(), "' to '", path_, "' (",
                    system_message(errno), "); check the name and its permissions");
  committed_ = true;
  const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // EINVAL: some file systems cannot sync a folder.
  const bool synced = folder >= 0 && (::fsync(folder) == 0 || errno == EINVAL);
  const int error = errno;
  if (folder >= 0) ::close(folder);
  TORCH_CHECK_VALUE(synced, function_, ": wrote '", path_, "', but could not sync its folder (",
                    system_message(error), "); check the disk");
}

}  // namespace dpt
