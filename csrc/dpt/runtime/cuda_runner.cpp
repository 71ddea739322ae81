#include "dpt/runtime/cuda_runner.h"

#ifdef DPT_WITH_CUDA
#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/Event.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <list>
#include <map>
#include <mutex>

#include "dpt/runtime/evaluate.h"
#include "dpt/runtime/prepare.h"

namespace at::cuda {
// Of ATen/cuda/CUDAContextLight.h, which includes headers of cuBLAS that not every toolkit has.
TORCH_CUDA_CPP_API void clearCublasWorkspaces();
}  // namespace at::cuda
#endif

namespace dpt::runtime {

#ifdef DPT_WITH_CUDA

namespace {

constexpr size_t kGraphs = 8;  // shapes of images that are remembered
// The first pass finds cuDNN's algorithms and fills the cache of the size; the second is as those
// that are captured.
constexpr int kWarmUps = 2;

using c10::cuda::CUDAStream;

// What is kept is written to again, which tensors of inference mode do not allow outside of it.
struct PlainTensors {
  c10::InferenceMode normal{false};
  at::NoGradGuard no_grad;
};

// One capture is under way at a time in a process, since the state of PyTorch's random numbers is
// one for all. Its stream is nobody else's: PyTorch's pool has 32, handed out in turn, and what
// another thread gives to the stream becomes part of the graph.
struct Captures {
  std::mutex mutex;
  std::map<c10::DeviceIndex, CUDAStream> streams;

  static Captures& all() {
    static auto* const captures = new Captures;  // never destroyed: CUDA may be gone before
    return *captures;
  }
  // With the lock held.
  CUDAStream stream(c10::DeviceIndex index) {
    auto found = streams.find(index);
    if (found == streams.end()) {
      cudaStream_t raw = nullptr;
      C10_CUDA_CHECK(cudaStreamCreateWithFlags(&raw, cudaStreamNonBlocking));
      found = streams.emplace(index, c10::cuda::getStreamFromExternal(raw, index)).first;
    }
    return found->second;
  }
};

Output copy_of(const Output& output) {
  Output copy;
  if (output.depth.defined()) copy.depth = output.depth.clone();
  if (output.logits.defined()) copy.logits = output.logits.clone();
  return copy;
}

}  // namespace

struct CudaRunner::State {
  // A shape and type of images with its graph, whose memory holds the output and all that is
  // between.
  struct Shape {
    SizeCache cache;
    Tensor images;
    Output output;
    at::cuda::CUDAGraph graph;
  };

  Network network;
  at::Device device;
  PixelStatistics pixels;
  std::mutex mutex;
  c10::Event last{c10::DeviceType::CUDA};    // behind the last call's work
  std::list<std::unique_ptr<Shape>> shapes;  // the last one used first

  State(const Network& network, at::Device device, at::ScalarType dtype,
        const std::array<double, 3>& mean, const std::array<double, 3>& std)
      : network(prepare(network, device, dtype)), device(device), pixels{mean, std} {}

  ~State() {
    try {
      wait();
    } catch (...) {  // CUDA is gone already at the end of a process
    }
    const std::lock_guard lock(Captures::all().mutex);
    shapes.clear();
  }

  // For all graphs that were started.
  void wait() {
    if (last.was_marked_for_recording()) last.synchronize();
  }

  Output evaluated(SizeCache& cache, const Tensor& images) const {
    const bool bytes = images.scalar_type() == at::kByte;
    return evaluate(network, cache, bytes ? images : images.contiguous(), pixels);
  }
  Shape& shape_of(const Tensor& images);
  std::unique_ptr<Shape> captured(const Tensor& images);
};

// With the lock held.
CudaRunner::State::Shape& CudaRunner::State::shape_of(const Tensor& images) {
  for (auto it = shapes.begin(); it != shapes.end(); ++it) {
    const Tensor& held = (*it)->images;
    if (held.sizes() == images.sizes() && held.scalar_type() == images.scalar_type()) {
      shapes.splice(shapes.begin(), shapes, it);
      return *shapes.front();
    }
  }
  wait();  // one of the graphs may go
  const std::lock_guard lock(Captures::all().mutex);
  if (shapes.size() == kGraphs) shapes.pop_back();
  shapes.push_front(captured(images));
  return *shapes.front();
}

std::unique_ptr<CudaRunner::State::Shape> CudaRunner::State::captured(const Tensor& images) {
  auto shape = std::make_unique<Shape>();
  const CUDAStream current = c10::cuda::getCurrentCUDAStream(device.index());
  shape->images = at::empty(images.sizes(), images.options(), at::MemoryFormat::Contiguous);
  shape->images.copy_(images);
  C10_CUDA_CHECK(cudaStreamSynchronize(current));
  const CUDAStream side = Captures::all().stream(device.index());
  const c10::cuda::CUDAStreamGuard guard(side);
  for (int i = 0; i < kWarmUps; ++i) evaluated(shape->cache, shape->images);
  C10_CUDA_CHECK(cudaStreamSynchronize(side));
  // cuBLAS keeps a workspace for each stream until somebody clears them all, as torch.compile does:
  // that of a graph must be of the graph's own memory, and is not there yet when it is captured.
  at::cuda::clearCublasWorkspaces();
  // Blocks that the allocator keeps are not released during a capture, whose memory is a pool
  // apart.
  c10::cuda::CUDACachingAllocator::emptyCache();
  // Other threads may allocate meanwhile.
  shape->graph.capture_begin(/*pool=*/{0, 0}, cudaStreamCaptureModeThreadLocal);
  try {
    shape->output = evaluated(shape->cache, shape->images);
  } catch (...) {
    // The stream must not stay in capture; what went wrong first is what the caller hears of.
    try {
      shape->graph.capture_end();
    } catch (...) {
    }
    throw;
  }
  shape->graph.capture_end();
  at::cuda::clearCublasWorkspaces();
  return shape;
}

CudaRunner::CudaRunner(const Network& network, at::Device device, at::ScalarType dtype,
                       const std::array<double, 3>& mean, const std::array<double, 3>& std) {
  TORCH_CHECK_VALUE(at::globalContext().hasCUDA() && c10::cuda::device_count() > 0,
                    "freeze: device ", device,
                    " was asked for, and torch sees no GPU; "
                    "see `nvidia-smi`, or freeze for the CPU");
  const auto index = device.has_index() ? device.index() : c10::cuda::current_device();
  TORCH_CHECK_VALUE(index < c10::cuda::device_count(), "freeze: device ", device,
                    " was asked for, and torch sees ", c10::cuda::device_count(),
                    " GPUs, counted from 0");
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  TORCH_CHECK_VALUE(dtype != at::kFloat8_e4m3fn || 10 * major + minor >= 89,
                    "freeze: float8_e4m3fn needs a GPU of compute capability 8.9 or more, got ",
                    major, ".", minor, "; freeze in bfloat16");
  const PlainTensors plain;
  const at::Device placed(at::kCUDA, index);
  const c10::cuda::CUDAGuard guard(placed);
  state_ = std::make_unique<State>(network, placed, dtype, mean, std);
  // Calls may be on other streams.
  C10_CUDA_CHECK(cudaStreamSynchronize(c10::cuda::getCurrentCUDAStream(index)));
}

CudaRunner::~CudaRunner() = default;

at::Device CudaRunner::device() const { return state_->device; }

Output CudaRunner::operator()(const Tensor& images) {
  State& state = *state_;
  const PlainTensors plain;
  const c10::cuda::CUDAGuard guard(state.device);
  if (images.size(0) == 0) {  // not every kernel takes it
    Output one = (*this)(at::zeros({1, 3, images.size(2), images.size(3)}, images.options()));
    for (Tensor* map : {&one.depth, &one.logits}) {
      if (map->defined()) *map = map->slice(0, 0, 0);
    }
    return one;
  }
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    SizeCache cache{.find_algorithms = false};  // a search waits for the GPU, which ends a capture
    return state.evaluated(cache, images);
  }
  const std::lock_guard lock(state.mutex);
  State::Shape& shape = state.shape_of(images);
  const CUDAStream current = c10::cuda::getCurrentCUDAStream(state.device.index());
  // Calls with one shape share its images and output.
  if (state.last.was_marked_for_recording()) state.last.block(current);
  shape.images.copy_(images, /*non_blocking=*/true);
  shape.graph.replay();
  state.last.record(current);  // in case there is no memory for the copies
  Output output = copy_of(shape.output);
  state.last.record(current);
  return output;
}

#else

struct CudaRunner::State {};

CudaRunner::CudaRunner(const Network& /*network*/, at::Device device, at::ScalarType /*dtype*/,
                       const std::array<double, 3>& /*mean*/,
                       const std::array<double, 3>& /*std*/) {
  TORCH_CHECK_VALUE(
      false, "freeze: this build has no CUDA, and device ", device,
      " was asked for. Install a CUDA build of torch (https://pytorch.org/get-started) "
      "and a CUDA toolkit, then build torchdpt there: "
      "pip install --no-build-isolation .");
}

CudaRunner::~CudaRunner() = default;

at::Device CudaRunner::device() const { return at::kCUDA; }

Output CudaRunner::operator()(const Tensor& /*images*/) { return {}; }

#endif

}  // namespace dpt::runtime
