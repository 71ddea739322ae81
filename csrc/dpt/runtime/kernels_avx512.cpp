#define DPT_ISA avx512
#define DPT_ISA_VALUE kAvx512
#include "dpt/runtime/kernels.inl"
