"""Loads the compiled library once; importing this module registers torch.ops.vqdm.*.

`_C` (schemas and CPU kernels) loads always. `_C_cuda` (CUDA implementations of the same schemas) loads only where torch
itself has CUDA, so a CUDA build of the extension works beside a CPU torch. Neither creates a CUDA context.
"""

from pathlib import Path

import torch

try:
    from vqdm_cuda import _C
except ImportError as error:
    raise ImportError(
        f"vqdm_cuda: its compiled library does not load ({error}); build it with `pip install --no-build-isolation .` "
        "in a checkout, with a C++ compiler on PATH"
    ) from error

__all__ = ["build_info", "has_cuda_kernels"]

_CPU_LIBRARY = Path(_C.__file__)
_CUDA_LIBRARY = _CPU_LIBRARY.with_name(_CPU_LIBRARY.name.replace("_C.", "_C_cuda.", 1))


def has_cuda_kernels() -> bool:
    """Whether CUDA tensors will run: the CUDA half was built and this torch has CUDA."""
    # _C says whether it was built with CUDA: a file that an earlier build left does not count.
    return bool(_C.facts()["cuda_archs"]) and _CUDA_LIBRARY.exists() and torch.version.cuda is not None


def build_info() -> dict[str, object]:
    """What was built, and which of it this processor runs.

    Returns:
        version, compiler and torch_headers (what the library was built with), cpu_kernel (the fastest that this
        processor runs: avx512vnni, avx512, avx2 or portable), cpu_features, cuda_archs (empty where built without
        nvcc), cuda_library (its file, or None), cuda_kernels (whether CUDA tensors will run).
    """
    return {
        **_C.facts(),
        "cuda_library": str(_CUDA_LIBRARY) if _CUDA_LIBRARY.exists() else None,
        "cuda_kernels": has_cuda_kernels(),
    }


if has_cuda_kernels():
    torch.ops.load_library(str(_CUDA_LIBRARY))
