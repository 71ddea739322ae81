// csrc/dpt/ops/host_device.h -- for code that nvcc compiles for the GPU and g++ for the host.
#pragma once

#ifdef __CUDACC__
#define DPT_HOST_DEVICE __host__ __device__ inline  // for both, in a .cu file
#define DPT_DEVICE __device__ inline                // for the one that the file is for
#else
#define DPT_HOST_DEVICE inline
#define DPT_DEVICE inline
#endif
