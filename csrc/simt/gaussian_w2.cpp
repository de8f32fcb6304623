// The kernels of csrc/cuda/gaussian_w2.cu, built to run on the host.

#include "cuda/gaussian_w2.cu"
