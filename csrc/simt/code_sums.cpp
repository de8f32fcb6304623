// The kernels of csrc/cuda/code_sums.cu, built to run on the host.

#include "cuda/code_sums.cu"
