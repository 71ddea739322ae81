#include "dpt/io/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <tuple>

#include "dpt/io/atomic_file.h"
#include "dpt/io/safetensors_header.h"

namespace dpt {
namespace {

constexpr std::pair<const char*, at::ScalarType> kDtypes[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
    {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
    {"U8", at::kByte},    {"BOOL", at::kBool}};

at::ScalarType to_scalar_type(const std::string& dtype) {
  for (const auto& [name, type] : kDtypes) {
    if (name == dtype) return type;
  }
  TORCH_INTERNAL_ASSERT(false, "parse_safetensors_header let through dtype ", dtype);
}

std::string system_message(int error) { return std::generic_category().message(error); }

// A file name ends at its first zero byte: "a\0b" would reach the file "a".
void check_path(const char* function, const std::string& path) {
  TORCH_CHECK_VALUE(!path.empty() && path.find('\0') == std::string::npos, function,
                    ": wanted the name of a file, got ",
                    path.empty() ? "nothing" : "a zero byte in it", "; check the path");
}

// Closes a file descriptor on the way out.
struct File {
  int descriptor;

  explicit File(int descriptor) : descriptor(descriptor) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

// The bytes of a file, private: what is written to them stays in this process.
struct Mapping {
  unsigned char* data = nullptr;
  size_t size = 0;

  explicit Mapping(const std::string& path);
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data != nullptr) ::munmap(data, size);
  }
};

Mapping::Mapping(const std::string& path) {
  // O_NONBLOCK: opening a pipe would wait for its writer.
  const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  TORCH_CHECK_VALUE(file.descriptor >= 0, "read_safetensors: wanted a readable file, got '", path,
                    "' (", system_message(errno), "); check the path and its permissions");
  struct stat status = {};
  TORCH_CHECK_VALUE(::fstat(file.descriptor, &status) == 0 && S_ISREG(status.st_mode),
                    "read_safetensors: wanted a regular file, got '", path, "', which is ",
                    S_ISDIR(status.st_mode) ? "a folder; name the .safetensors file in it"
                                            : "none; copy its content to a file first");
  size = static_cast<size_t>(status.st_size);
  if (size == 0) return;  // mmap refuses it; the header's check has the better message
  // MAP_NORESERVE: pages that are only read need no swap space.
  void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
                        file.descriptor, 0);
  TORCH_CHECK_VALUE(mapped != MAP_FAILED, "read_safetensors: could not map the ", size,
                    " bytes of '", path, "' (", system_message(errno),
                    "); check the limits on address space");
  data = static_cast<unsigned char*>(mapped);
}

// Gives back the memory of the whole pages in this part of a mapping.
void release_pages(void* start, size_t size) {
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(start);
  const uintptr_t first = (address + page - 1) / page * page;
  const uintptr_t last = (address + size) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

Tensor make_tensor(const TensorEntry& entry, unsigned char* data,
                   const std::shared_ptr<Mapping>& mapping) {
  const auto options = at::TensorOptions().dtype(to_scalar_type(entry.dtype));
  const size_t size = entry.end - entry.begin;
  if (size == 0) return at::empty(entry.shape, options);
  const size_t item_size = options.dtype().itemsize();
  if (reinterpret_cast<uintptr_t>(data) % item_size != 0) {
    Tensor copy = at::empty(entry.shape, options);
    std::memcpy(copy.data_ptr(), data, size);
    return copy;
  }
  return at::from_blob(
      data, entry.shape, [mapping, size](void* start) { release_pages(start, size); }, options);
}

void check_tensor(const std::string& path, const std::string& name, const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.defined(), "write_safetensors: '", path, "': tensor '", name,
                    "' is undefined; leave it out");
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && !tensor.is_nested() && !tensor.is_meta(),
                    "write_safetensors: '", path, "': wanted dense tensors with data, got '", name,
                    "' of layout ", tensor.layout(), " on ", tensor.device(),
                    "; convert it with to_dense() or to_padded_tensor(), or give it data");
}

const char* to_dtype_name(const std::string& path, const std::string& name, const Tensor& tensor) {
  for (const auto& [dtype, type] : kDtypes) {
    if (type == tensor.scalar_type()) return dtype;
  }
  TORCH_CHECK_VALUE(
      false, "write_safetensors: '", path, "': tensor '", name, "' has dtype ",
      tensor.scalar_type(),
      ", wanted float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8 "
      "or bool; convert it with to()");
}

}  // namespace

Safetensors read_safetensors(const std::string& path) {
  check_path("read_safetensors", path);
  const auto mapping = std::make_shared<Mapping>(path);
  SafetensorsHeader header;
  try {
    header = parse_safetensors_header({mapping->data, mapping->size});
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, "read_safetensors: '", path, "': ", error.what(),
                      "; the file is damaged or no safetensors file: fetch or save it again");
  }
  Safetensors file;
  file.metadata = std::move(header.metadata);
  file.mapped = {mapping->data, mapping->size};
  for (const TensorEntry& entry : header.tensors) {
    unsigned char* data = mapping->data + header.data_start + entry.begin;
    if (entry.dtype == "BOOL") {
      TORCH_CHECK_VALUE(
          std::all_of(data, data + (entry.end - entry.begin), [](auto b) { return b < 2; }),
          "read_safetensors: '", path, "': wanted bytes 0 and 1 in the BOOL tensor '", entry.name,
          "', got others; save it again as U8");
    }
    file.tensors.emplace(entry.name, make_tensor(entry, data, mapping));
  }
  return file;
}

void write_safetensors(const std::string& path,
                       const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  check_path("write_safetensors", path);
  struct Item {
    const Tensor* tensor;
    TensorEntry entry;
  };
  std::vector<Item> items;
  for (const auto& [name, tensor] : tensors) {
    check_tensor(path, name, tensor);
    items.push_back({&tensor, {name, to_dtype_name(path, name, tensor), tensor.sizes().vec()}});
  }
  // Behind an aligned start of the data, tensors of aligned sizes come first, and of the others
  // those of larger items: each is aligned to its item's size.
  const auto key = [](const Item& item) {
    return std::tuple(item.tensor->nbytes() % kSafetensorsAlignment != 0,
                      -static_cast<int64_t>(item.tensor->element_size()),
                      std::string_view(item.entry.name));
  };
  std::sort(items.begin(), items.end(),
            [&](const Item& a, const Item& b) { return key(a) < key(b); });
  uint64_t end = 0;
  std::vector<TensorEntry> entries;
  for (Item& item : items) {
    item.entry.begin = end;
    item.entry.end = end += item.tensor->nbytes();
    entries.push_back(item.entry);
  }
  std::string header;
  try {
    header = format_safetensors_header(entries, metadata);
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, "write_safetensors: '", path, "': ", error.what());
  }

  AtomicFile file(path, "write_safetensors");
  file.write(header);
  for (const Item& item : items) {
    const Tensor dense = item.tensor->detach().to(at::kCPU).resolve_neg().contiguous();
    file.write(dense.const_data_ptr(), dense.nbytes());
  }
  file.commit();
}

}  // namespace dpt
