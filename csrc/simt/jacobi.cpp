// The kernels of csrc/cuda/jacobi.cu, built to run on the host.

#include "cuda/jacobi.cu"
