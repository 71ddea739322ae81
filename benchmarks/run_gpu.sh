#!/usr/bin/env bash
# Installs torchdpt on a machine with a GPU, into the environment of PYTHON, and tests or measures it there. Each command
# ends in eight minutes; what was built and compiled is kept in build/gpu for the next one, and results are files in OUT.
#
#   benchmarks/run_gpu.sh test [PYTEST ARGUMENTS]       the suite; a test that finds no GPU fails
#   benchmarks/run_gpu.sh sanitize                      kernel tests under compute-sanitizer
#   benchmarks/run_gpu.sh bench MODEL [ARGUMENTS]       bench_gpu.py, with ARGUMENTS or for the sizes of the results
#
# Needs python3 with torch (CUDA), scikit-build-core, cmake, ninja and pytest, and nvcc of the same CUDA; no network. What
# else python3 lacks is installed from DPT_WHEELS, or named; files of tests that need it fail, and the others run.
#
#   OUT             where results go                              (benchmarks/results)
#   DPT_CUDA_ARCH   architecture to compile for                   (that of the GPU)
#   DPT_JOBS        compilers and test processes at once          (nproc)
#   DPT_SECONDS     after which nothing new is begun              (440)
#   DPT_WHEELS      folder with wheels of packages that python3 lacks, found by pip (.whl)
#   PYTHON          the interpreter                               (python3)
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'
  exit "${1:-0}"
}

python=${PYTHON:-python3}
jobs=${DPT_JOBS:-$(nproc)}
limit=${DPT_SECONDS:-440}
out=$(mkdir -p "${OUT:-benchmarks/results}" && cd "${OUT:-benchmarks/results}" && pwd)
kept=$PWD/build/gpu
failed=0

step() { echo "run_gpu: [$SECONDS s] $*"; }
left() { echo $((limit - SECONDS > 0 ? limit - SECONDS : 0)); }

# With a time limit, the SHARE-th part of what is left; a failure is remembered, and what comes next still runs.
attempt() {
  local seconds
  seconds=$(($(left) / ${SHARE:-1}))
  if ((seconds < 20)); then
    step "no time left for: $*"
    failed=1
    return
  fi
  step "$*"
  timeout --kill-after=10 "$seconds" "$@" || { step "FAILED ($?): $*"; failed=1; }
}

install_missing() {
  local missing package
  missing=$("$python" - "$@" << 'END'
import importlib.util, sys
names = dict(pair.split("=") for pair in sys.argv[1:])
print(*(package for module, package in names.items() if importlib.util.find_spec(module) is None))
END
  )
  for package in $missing; do
    step "install $package"
    "$python" -m pip install --quiet --no-index --find-links "${DPT_WHEELS:-.whl}" "$package" ||
      step "MISSING, in python3 and, with all that it needs, in ${DPT_WHEELS:-.whl}: $package"
  done
}

has() { "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$1"; }

build() {
  export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} PIP_DISABLE_PIP_VERSION_CHECK=1
  export PATH="$CUDA_HOME/bin:$PATH"
  export TORCHINDUCTOR_CACHE_DIR=$kept/inductor TRITON_CACHE_DIR=$kept/triton
  mkdir -p "$kept"
  "$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print("run_gpu:", torch.__version__,
torch.version.cuda, torch.cuda.get_device_name())'
  local arch
  arch=${DPT_CUDA_ARCH:-$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
  # In this order: what a package needs itself comes along.
  install_missing numpy=numpy PIL=pillow yaml=pyyaml tqdm=tqdm pydantic=pydantic shtab=shtab \
    huggingface_hub=huggingface_hub transformers=transformers
  step "build for sm_$arch"
  CMAKE_BUILD_PARALLEL_LEVEL=$jobs "$python" -m pip install --quiet --no-build-isolation --no-deps --force-reinstall \
    -C build-dir="$kept/build" -C cmake.define.DPT_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$arch" .
  step "built"
}

run_tests() {
  install_missing xdist=pytest-xdist imgviz=imgviz torchmetrics=torchmetrics h5py=h5py cv2=opencv-python-headless \
    skimage=scikit-image scipy=scipy safetensors=safetensors matplotlib=matplotlib tensorboard=tensorboard \
    onnx=onnx onnxscript=onnxscript onnxruntime=onnxruntime
  export DPT_REQUIRE_CUDA=1 OMP_NUM_THREADS=1
  local pytest=("$python" -m pytest --continue-on-collection-errors) few=() many=()
  if (($#)); then
    attempt "${pytest[@]}" --junitxml="$out/test.xml" "$@"
    return
  fi
  if has xdist; then few=(-n 4) many=(-n "$jobs" --dist worksteal); fi
  # First what needs the GPU, which few processes share.
  attempt "${pytest[@]}" -m 'cuda and not slow' "${few[@]}" --junitxml="$out/test_cuda.xml"
  # The others as on a machine without one, where commands take the CPU if they are not told.
  attempt env CUDA_VISIBLE_DEVICES= "${pytest[@]}" -m 'not cuda and not slow' "${many[@]}" \
    --junitxml="$out/test_cpu.xml"
}

run_sanitizers() {
  local all=(tests/python/test_{resize,upsample_add,upsample_gather,add_layer_norm,group_norm,normalize_pixels,quantize_rows,readout,losses}.py)
  local with_shared_memory=(tests/python/test_{group_norm,losses}.py)
  local tools=(memcheck racecheck synccheck) tests i
  # Every allocation by itself, so that what lies outside of a tensor is outside of memory.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 DPT_REQUIRE_CUDA=1
  for i in "${!tools[@]}"; do
    local tool=${tools[i]}
    tests=("${with_shared_memory[@]}")
    if [[ $tool == memcheck ]]; then tests=("${all[@]}"); fi
    # PyTorch asks the driver for what it does not mind not to get; those are no errors of a kernel.
    SHARE=$((${#tools[@]} - i)) attempt compute-sanitizer --tool "$tool" --target-processes all --report-api-errors no \
      --error-exitcode 1 --log-file "$out/$tool.log" \
      "$python" -m pytest -q -x -p no:cacheprovider -m 'cuda and not slow' \
      -k 'not opcheck and not compile and not gradients_of_both_orders' "${tests[@]}"
    tail -n 3 "$out/$tool.log" || true
  done
}

# Its record is written with a minute to spare.
measure() {
  local seconds=$(($(left) - 60))
  attempt "$python" benchmarks/bench_gpu.py --seconds $((seconds > 1 ? seconds : 1)) "$@"
}

run_benchmarks() {
  (($#)) || usage 2
  local model=$1
  shift
  install_missing timm=timm
  if (($#)); then
    measure --model "$model" "$@"
  else
    for batch in 1 8 32; do measure --model "$model" --batch "$batch"; done
  fi
  local file
  for file in benchmarks/results/{gpu,train}_"$model"_*.json; do
    if [[ $file -nt $kept/started && $out != "$PWD/benchmarks/results" ]]; then cp "$file" "$out/"; fi
  done
}

case "${1:-}" in
  test | sanitize | bench) ;;
  -h | --help) usage ;;
  *) usage 2 >&2 ;;
esac
if [[ $1 == bench && $# -lt 2 ]]; then usage 2 >&2; fi
build
touch "$kept/started"
command=$1
shift
case $command in
  test) run_tests "$@" ;;
  sanitize) run_sanitizers ;;
  bench) run_benchmarks "$@" ;;
esac
step "done, results in $out"
exit "$failed"
