# make demo | test | lint | bench | soak | sanitize | gpu | clean          (needs python3, a C++ compiler and make)
#
# Each target makes .venv and installs what it needs, once. Stamps: .venv/.base (torch and the build tools),
# .venv/.demo (the package, CUDA kernels only where torch has CUDA), .venv/.test (test tools, and the package with the
# CUDA kernels for one architecture where nvcc is there: they compile and link on a machine without a GPU).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BUILD_FILES := setup.py CMakeLists.txt pyproject.toml vqdm_cuda/_version.py $(wildcard csrc/*.cpp csrc/*/*)
RUNS ?= runs
PYTEST_ARGS ?=

.PHONY: demo test lint bench soak sanitize gpu clean
.DEFAULT_GOAL := demo

$(VENV)/.base: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 "setuptools>=77" "cmake>=3.26" ninja "pybind11>=3"
	touch $@

$(VENV)/.demo: $(VENV)/.base $(BUILD_FILES)
	CMAKE_ARGS="-DVQDM_WITH_CUDA=$$($(BIN)/python -c 'import torch; print("AUTO" if torch.version.cuda else "OFF")')" \
	  $(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/.test: $(VENV)/.base $(BUILD_FILES)
	CUDAARCHS=$${CUDAARCHS:-90a} CMAKE_ARGS="-DVQDM_WITH_CUDA=AUTO -DVQDM_WERROR=ON -DVQDM_SIMT=ON" \
	  $(PIP) --no-build-isolation --editable ".[test]"
	touch $(VENV)/.demo $@

demo: $(VENV)/.demo
	$(BIN)/vqdm train --preset demo-vanilla --data builtin:photos --out $(RUNS)/demo-vanilla
	$(BIN)/vqdm train --preset demo --data builtin:photos --out $(RUNS)/demo
	$(BIN)/vqdm report $(RUNS)/demo $(RUNS)/demo-vanilla --out $(RUNS)/demo/report.html

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

soak: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or not slow" $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

bench: $(VENV)/.test
	$(PIP) faiss-cpu POT geomloss
	$(BIN)/python -m bench.ops.bench_nearest_code
	$(BIN)/python -m bench.ops.bench_code_sums
	$(BIN)/python -m bench.ops.bench_gaussian_w2
	$(BIN)/python -m bench.ops.bench_sinkhorn
	$(BIN)/python -m bench.ops.bench_quantizers
	$(BIN)/python -m bench.plot

# The library and its CPU kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer, in a build of its own.
sanitize: $(VENV)/.test
	bash csrc/sanitize.sh $(BIN)/python

# On a machine with a GPU: PYTHON names an interpreter that has torch with CUDA, pytest, hypothesis and the build tools;
# nothing is installed from outside. First whether the results are right, then how fast they come, last what
# compute-sanitizer finds where it is there (SANITIZE= leaves it out). Results go to $$OUT (default: bench/results).
SANITIZE ?= memcheck racecheck initcheck synccheck
gpu: export PYTHONPATH := .:train:python_tests
gpu:
	CUDAARCHS=$${CUDAARCHS:-90a} CMAKE_ARGS="-DVQDM_WITH_CUDA=ON" $(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m pytest -m "not slow" -k "cuda or gpu" python_tests/ops
	for op in nearest_code code_sums gaussian_w2 sinkhorn quantizers; do \
	  $(PYTHON) -m bench.ops.bench_$$op --device cuda --seconds 3 --out $${OUT:-bench/results} || exit 1; done
	for tool in $$(command -v compute-sanitizer >/dev/null && echo $(SANITIZE)); do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(PYTHON) -m bench.sanitized || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info vqdm_cuda/*.so .mypy_cache .ruff_cache .pytest_cache
