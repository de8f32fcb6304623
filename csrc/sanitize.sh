#!/usr/bin/env bash
# Builds the library under AddressSanitizer and UndefinedBehaviorSanitizer, beside the ordinary build, and runs the
# kernel tests on it: those of the CPU kernels, and those of the CUDA kernels on the host.
# Usage: csrc/sanitize.sh PYTHON [pytest options]
set -euo pipefail
python=$(realpath --no-symlinks "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/sanitize
mkdir -p "$build/vqdm_cuda"
cp -r "$root/vqdm_cuda/." "$build/vqdm_cuda/"
rm -f "$build"/vqdm_cuda/*.so
PATH=$(dirname "$python"):$PATH
cmake -S "$root" -B "$build/cmake" -G Ninja -DPython_EXECUTABLE="$python" \
  -DVQDM_WITH_CUDA=OFF -DVQDM_SANITIZE=ON -DVQDM_SIMT=ON \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$build/vqdm_cuda" >/dev/null
cmake --build "$build/cmake"
# The runtime comes first in the process; torch keeps memory for its own lifetime, so leaks are not looked for, and
# aligned_alloc'ed memory that torch frees through operator delete is its own affair.
cd "$build"
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:alloc_dealloc_mismatch=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
VQDM_SIMT_DIR="$build/cmake" PYTHONPATH="$build:$root/python_tests" \
  "$python" -m pytest -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$build" -o pythonpath= -q \
  "$root"/python_tests/test_simt.py \
  "$root"/python_tests/ops/test_{code_sums,nearest_code,nearest_code_at_random,moments,sqrtm,gaussian_w2}.py \
  "$root"/python_tests/ops/test_{sinkhorn,pair_costs_on_simt}.py \
  -m "not slow" "${@:2}"
