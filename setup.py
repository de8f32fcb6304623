"""Packaging, and nothing else: CMakeLists.txt is the one description of the build, this drives it."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "vqdm_cuda/_version.py").read_text()).group(1)


def find_tool(name: str, folder: str) -> str:
    """A build tool: that of the Python package of its name, which needs no PATH, else the one on PATH."""
    try:
        return str(Path(getattr(importlib.import_module(name), folder)) / name)
    except ImportError:
        found = shutil.which(name)
    if found is None:
        raise SystemExit(f"vqdm_cuda: building needs {name}: pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Configure and build with CMake + Ninja; the libraries land beside the package's Python files."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_cuda"):
            return  # built with the other, where there is an nvcc
        try:
            import pybind11
            import torch
        except ImportError as error:
            raise SystemExit(
                f"vqdm_cuda: building needs {error.name}: "
                "pip install torch pybind11 cmake ninja, then pip install --no-build-isolation ."
            ) from error
        cmake, ninja = find_tool("cmake", "CMAKE_BIN_DIR"), find_tool("ninja", "BIN_DIR")

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        subprocess.run(
            [
                cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                f"-DVQDM_TORCH_DIR={Path(torch.__file__).parent}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
                # All switches, so that the build folder does not remember those of an earlier call.
                "-DCMAKE_BUILD_TYPE=Release",
                "-DVQDM_WITH_CUDA=AUTO",
                "-DVQDM_WERROR=OFF",
                "-DVQDM_SIMT=OFF",
                "-DVQDM_SANITIZE=OFF",
                *os.environ.get("CMAKE_ARGS", "").split(),
            ],
            check=True,
        )  # fmt: skip
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run([cmake, "--build", str(build), *(["-j", jobs] if jobs else [])], check=True)


setup(
    name="vqdm_cuda",
    version=VERSION,
    description="Exact, fast vector quantization for image tokenizers: kernels, quantizers and a trainer",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["vqdm_cuda", "vqdm_cuda.*"]) + find_packages("train"),
    package_dir={"vqdm_train": "train/vqdm_train"},
    package_data={"vqdm_cuda": ["py.typed", "*.pyi"], "vqdm_train": ["py.typed", "*.html"]},
    ext_modules=[Extension("vqdm_cuda._C", sources=[]), Extension("vqdm_cuda._C_cuda", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
    install_requires=[
        "torch>=2.10",
        "numpy",
        "safetensors",
        "click",
        "pillow",
        "scikit-image",
        "scikit-learn",
        "matplotlib",
        "lpips",
    ],
    extras_require={
        "test": [
            *("pytest", "hypothesis", "mpmath", "vector-quantize-pytorch==1.32.0", "tensorboard"),
            *("ruff==0.17.5", "mypy==2.4.1", "clang-format==23.1.5"),
        ],
        "hf": ["datasets>=4"],  # data.path=hf:NAME; from 4 on no data set is a program
        "tensorboard": ["tensorboard"],  # tracking.tensorboard
        "wandb": ["wandb"],  # tracking.wandb
        "bench": ["faiss-cpu", "vector-quantize-pytorch==1.32.0", "POT", "geomloss"],  # peers to measure against
    },
    entry_points={"console_scripts": ["vqdm = vqdm_train.cli:main"]},
)
