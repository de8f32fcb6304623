// The test-only module _C_simt: the CUDA kernels on the host, and the interpreter's own checks.
// Its operators, torch.ops.vqdm_simt.*, come from csrc/ops/*_cuda.cpp, built with VQDM_SIMT.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "faults.h"
#include "interpreter.h"

PYBIND11_MODULE(_C_simt, m) {
  m.doc() = "Runs vqdm_cuda's CUDA kernels on the host, for tests.";
  m.def("set_schedule", [](const std::string& name, uint64_t seed) {
    using vqdm::simt::Schedule;
    if (name != "forward" && name != "reverse" && name != "random") throw std::invalid_argument("schedule: " + name);
    vqdm::simt::set_schedule(name == "forward"   ? Schedule::kForward
                             : name == "reverse" ? Schedule::kReverse
                                                 : Schedule::kRandom,
                             seed);
  });
  m.def("set_max_shared_bytes", &vqdm::simt::set_max_shared_bytes);
  m.def("max_shared_bytes", &vqdm::simt::max_shared_bytes);
  m.def("fault_names", &vqdm::simt::fault_names);
  m.def("run_fault", &vqdm::simt::run_fault);
  m.def("run_mma", &vqdm::simt::run_mma);
}
