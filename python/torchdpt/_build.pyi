"""Written by CMake: what this build of torchdpt fits."""

VERSION: str
TORCH_VERSION: str
CUDA_VERSION: str | None
