// Kernels with a planted fault, and their sound twins: what the interpreter must find, and must not.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vqdm::simt {

std::vector<std::string> fault_names();
// Runs the kernel of that name; std::runtime_error where the interpreter finds its fault. Returns what it computed.
std::vector<int> run_fault(const std::string& name);

// One warp's fragment product: a [32, 4] and b [32, 2] registers, acc [32, 4]; see mma.cpp for their layout.
std::vector<float> run_mma(bool bfloat16, const std::vector<uint32_t>& a, const std::vector<uint32_t>& b,
                           const std::vector<float>& acc);

}  // namespace vqdm::simt
