// The kernels of csrc/cuda/sqrtm.cu, built to run on the host.

#include "cuda/sqrtm.cu"
