# Every target sets up what it needs. `make demo` and `make test` are the two that most people want.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BUILD := build/release
SANITIZED := build/sanitized
FUZZED := build/fuzz
FUZZ_SECONDS ?= 30

bin := $(VENV)/bin
install := $(bin)/pip install --quiet --no-build-isolation -C build-dir=$(BUILD)
# CMake of the environment, not of the machine.
export PATH := $(abspath $(bin)):$(PATH)

.PHONY: help demo test lint format notebook benchmark sanitize fuzz cuda package weights clean

help:
	@echo 'make demo      depth of three photographs, saved as pictures'
	@echo 'make test      C++ and Python tests'
	@echo 'make lint      formatting, static checks, types and the stub of the compiled module'
	@echo 'make notebook  runs the notebooks'
	@echo 'make sanitize  C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make fuzz      fuzzes the parsers for $(FUZZ_SECONDS) seconds each (clang)'
	@echo 'make cuda      compiles and links the CUDA kernels, no GPU needed (nvcc)'
	@echo 'make package   sdist -> wheel -> fresh environment'
	@echo 'make benchmark forward pass against transformers'
	@echo 'make weights   trains the shipped network anew (four hours)'

# --- environments -----------------------------------------------------------------------------------------------------
$(VENV)/base: Makefile
	$(PYTHON) -m venv $(VENV)
	$(bin)/pip install --quiet 'pip>=23.1' && $(bin)/pip install --quiet $(TORCH) scikit-build-core cmake ninja
	$(bin)/python tests/requirements.py run | xargs -d '\n' $(bin)/pip install --quiet
	touch $@

$(VENV)/test: $(VENV)/base pyproject.toml
	$(bin)/python tests/requirements.py test | xargs -d '\n' $(bin)/pip install --quiet
	touch $@

$(VENV)/dev: $(VENV)/test
	$(bin)/python tests/requirements.py dev demo | xargs -d '\n' $(bin)/pip install --quiet
	touch $@

# --- the two commands -------------------------------------------------------------------------------------------------
demo: $(VENV)/base
	$(install) '.[demo]'
	data=$$($(bin)/python -c 'import skimage; print(skimage.__path__[0])')/data && \
	  $(bin)/torchdpt predict $$data/{coffee,astronaut,motorcycle_left}.png --model demo --out out

test: $(VENV)/test
	@if ! ls /usr/lib/*/libgtest.a /usr/lib/libgtest.a /usr/local/lib*/libgtest.a 2> /dev/null | grep -q .; then \
	  echo 'GoogleTest is missing: apt-get install libgtest-dev'; \
	  apt-get update -qq && apt-get install -y -qq libgtest-dev > /dev/null || \
	    { echo 'Could not install it here. Run: sudo apt-get install libgtest-dev'; exit 1; }; \
	fi
	$(install) -C cmake.define.DPT_TESTS=ON -C cmake.define.DPT_WERROR=ON --force-reinstall --no-deps .
	ctest --test-dir $(BUILD) --output-on-failure
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# --- checks -----------------------------------------------------------------------------------------------------------
cpp_files = $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.inl')

lint: $(VENV)/dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run --Werror $(cpp_files)
	$(bin)/mypy
	$(bin)/python -c 'import torchdpt' || $(install) --no-deps .  # stubtest finds no fault in a module that is not there
	$(bin)/python -m mypy.stubtest torchdpt._C --allowlist tests/stubtest.txt

format: $(VENV)/dev
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(cpp_files)

notebook: $(VENV)/dev
	$(bin)/python notebooks/run.py

benchmark: $(VENV)/test
	$(bin)/python benchmarks/bench_forward.py

weights: $(VENV)/dev
	$(install) .
	for stage in demo demo_2 demo_3; do $(bin)/torchdpt train $$stage || exit 1; done
	$(bin)/python benchmarks/ship_weights.py runs/demo_3/final python/torchdpt/weights/demo

sanitize: $(VENV)/base
	cmake -S . -B $(SANITIZED) -G Ninja -DDPT_PYTHON=OFF -DDPT_TESTS=ON -DDPT_CUDA=OFF \
	  -DDPT_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Debug \
	  -DCMAKE_PREFIX_PATH=$$($(bin)/python -c 'import torch; print(torch.utils.cmake_prefix_path)') > /dev/null
	cmake --build $(SANITIZED)
	ASAN_OPTIONS=detect_leaks=0 ctest --test-dir $(SANITIZED) --output-on-failure

fuzz: $(VENV)/base
	CXX=$${FUZZ_CXX:-clang++-14} cmake -S . -B $(FUZZED) -G Ninja -DDPT_FUZZ=ON > /dev/null
	cmake --build $(FUZZED)
	for target in fuzz_json fuzz_safetensors_header; do \
	  mkdir -p $(FUZZED)/corpus/$$target && \
	  $$(find $(FUZZED) -name $$target -type f) -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -verbosity=0 \
	    -print_final_stats=1 $(FUZZED)/corpus/$$target || exit 1; \
	done

cuda: $(VENV)/base
	PYTHON=$(bin)/python DPT_JOBS=2 bash tests/cuda_lane.sh

package: $(VENV)/base
	PYTHON=$(PYTHON) bash tests/packaging.sh

clean:
	rm -rf build dist out $(VENV)
