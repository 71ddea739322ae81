#define DPT_ISA avx2
#define DPT_ISA_VALUE kAvx2
#include "dpt/runtime/kernels.inl"
