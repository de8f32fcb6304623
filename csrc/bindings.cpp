// vqdm_cuda._C: facts about the build. No tensor crosses pybind11; operators go through torch's dispatcher, which
// importing this module fills (the static registrations of csrc/ops/*.cpp live in this library).

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/cpu_features.h"
#include "cpu/fma_peak.h"
#include "cpu/nearest_code_filter.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the compiled half of vqdm_cuda.";
  m.def("facts", [] {
    pybind11::dict facts;
    facts["version"] = VQDM_VERSION;
    facts["compiler"] = VQDM_COMPILER;
    facts["torch_headers"] = VQDM_TORCH_HEADERS;
    facts["cuda_archs"] = VQDM_CUDA_ARCHS;
    facts["cpu_features"] = vqdm::cpu::cpu_feature_names();
    facts["cpu_kernel"] = vqdm::cpu::nearest_code_filter().name;
    return facts;
  });
  m.def("fma_peak_gflops", &vqdm::cpu::fma_peak_gflops, pybind11::arg("milliseconds"), pybind11::arg("threads"),
        pybind11::call_guard<pybind11::gil_scoped_release>(),
        "fp32 GFLOP/s of fused multiply-adds on registers alone, `threads` threads at once.");
}
