// The kernels of csrc/cuda/nearest_code.cu, built to run on the host.

#include "cuda/nearest_code.cu"
