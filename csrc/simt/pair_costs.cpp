// The kernels of csrc/cuda/pair_costs.cu, built to run on the host.

#include "cuda/pair_costs.cu"
