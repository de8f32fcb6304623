// The kernels of csrc/cuda/symmetric.cu, built to run on the host.

#include "cuda/symmetric.cu"
