#define DPT_ISA baseline
#define DPT_ISA_VALUE kBaseline
#include "dpt/runtime/kernels.inl"
