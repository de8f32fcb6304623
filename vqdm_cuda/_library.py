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

__all__ = ["cuda_library_path", "facts", "has_cuda_kernels"]

_CUDA_LIBRARY = Path(__file__).with_name("_C_cuda.so")


def cuda_library_path() -> Path | None:
    """The CUDA half of the extension, or None where it was built without nvcc."""
    return _CUDA_LIBRARY if _CUDA_LIBRARY.exists() else None


def has_cuda_kernels() -> bool:
    """Whether CUDA tensors will run: the CUDA half was built and this torch has CUDA."""
    return _CUDA_LIBRARY.exists() and torch.version.cuda is not None


def facts() -> dict[str, object]:
    """What was built and what this processor can run: version, cpu_kernel, cpu_features, cuda_archs."""
    return _C.facts()


if has_cuda_kernels():
    torch.ops.load_library(str(_CUDA_LIBRARY))
