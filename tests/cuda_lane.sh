#!/usr/bin/env bash
# Compiles and links libdpt with its CUDA kernels where there is no GPU, against the CUDA wheel of torch, and checks what
# came out. Needs nvcc 13.0, cmake, ninja and pip; the wheel (about 530 MB) is kept in DPT_CACHE.
#
#   DPT_CACHE      where the wheel and the build live        (.cache)
#   DPT_CUDA_ARCH  architectures to compile for              (80 90)
#   CUDA_HOME      toolkit                                   (/usr/local/cuda)
#   PYTHON         Python whose version the wheel is for     (python3)
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.11.0
archs=${DPT_CUDA_ARCH:-80 90}
cache=$(mkdir -p "${DPT_CACHE:-.cache}" && cd "${DPT_CACHE:-.cache}" && pwd)
python=${PYTHON:-python3}
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export PATH="$CUDA_HOME/bin:$PATH"
torch="$cache/torch-$torch_version"
build="$cache/cuda-build-sm${archs// /-}"

fail() { echo "cuda lane: FAILED: $*" >&2; exit 1; }
step() { echo "cuda lane: [${SECONDS} s] $*"; }

step "torch $torch_version"
if [[ ! -f $torch/complete ]]; then
  compgen -G "$cache/torch-$torch_version-*.whl" >/dev/null ||
    "$python" -m pip download --quiet --no-deps --dest "$cache" "torch==$torch_version"
  rm -rf "$torch"
  unzip -qo "$cache/torch-$torch_version"-*.whl 'torch/include/*' 'torch/lib/*' 'torch/share/*' -d "$torch"
  touch "$torch/complete"
fi

# libtorch asks for nvrtc, which we do not use and a small toolkit does not have: any library stands in for it.
step "configure for sm $archs"
cmake -S . -B "$build" -G Ninja --fresh -Wno-dev \
  -DDPT_CUDA=ON -DDPT_PYTHON=OFF -DDPT_WERROR=ON \
  -DCMAKE_PREFIX_PATH="$torch/torch/share/cmake" \
  -DCMAKE_CUDA_ARCHITECTURES="${archs// /;}" \
  -DTORCH_CUDA_ARCH_LIST="$(for arch in $archs; do printf '%s.%s;' "${arch:0:-1}" "${arch: -1}"; done)" \
  -DCUDA_TOOLKIT_ROOT_DIR="$CUDA_HOME" \
  -DCUDA_nvrtc_LIBRARY="$CUDA_HOME/lib64/libcudart.so" >"$cache/cuda-configure.log" 2>&1 ||
  { tail -n 40 "$cache/cuda-configure.log" >&2; fail "configure"; }

step "build"
cmake --build "$build" --target dpt -j "${DPT_JOBS:-1}"

step "check"
if ! command -v cuobjdump >/dev/null; then  # not in every toolkit
  tool="$cache/cuobjdump/nvidia/cu13/bin"
  [[ -f $tool/cuobjdump ]] ||
    "$python" -m pip install --quiet --no-deps --target "$cache/cuobjdump" 'nvidia-cuda-cuobjdump>=13,<14'
  chmod +x "$tool/cuobjdump"
  export PATH="$PATH:$tool"
fi
library=$build/libdpt.so
code=$(cuobjdump --list-elf "$library")
symbols=$(nm -C "$library")
dynamic=$(readelf -dW "$library")
num_files=$(find csrc/dpt -name '*.cu' | wc -l)
for arch in $archs; do
  num_compiled=$(grep -c "sm_$arch" <<<"$code" || true)
  ((num_compiled == num_files)) || fail "$num_files .cu files, but sm_$arch code of $num_compiled in $library"
done
for symbol in 'dpt::upsample::launch(' 'dpt::upsample::launch_gather(' 'dpt::norm::launch_add_layer_norm(' 'dpt::norm::launch_group_norm(' \
  'dpt::pixels::launch_normalize_pixels(' 'dpt::float8::launch_quantize_rows(' 'dpt::patches::launch_readout(' \
  'U at::cuda::CUDAGraph::replay()'; do
  grep -qF "$symbol" <<<"$symbols" || fail "$symbol is not in $library"
done
grep -q 'NEEDED.*libtorch_cuda.so' <<<"$dynamic" || fail "$library does not need libtorch_cuda.so"
grep -q 'NEEDED.*libc10_cuda.so' <<<"$dynamic" || fail "$library does not need libc10_cuda.so"
if grep -q 'NEEDED.*libgomp' <<<"$dynamic"; then fail "$library brings a second libgomp"; fi

step "OK: libdpt.so has kernels for sm $archs and links against torch $torch_version (CUDA)"
