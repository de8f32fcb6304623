// vqdm_cuda._C: facts about the build. No tensor crosses pybind11; operators go through torch's dispatcher, which
// importing this module fills (the static registrations of csrc/ops/*.cpp live in this library).

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/cpu_features.h"
#include "cpu/nearest_code.h"

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
}
