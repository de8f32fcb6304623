// The kernels of csrc/cuda/moments.cu, built to run on the host.

#include "cuda/moments.cu"
