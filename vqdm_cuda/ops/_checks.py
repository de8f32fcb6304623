"""What every op asks of its tensors: floating types, one device. Messages are `function: expected X, got Y`."""

import torch
from torch import Tensor

from vqdm_cuda import _library

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_floating(function: str, **tensors: Tensor) -> None:
    """Raise TypeError unless each is a tensor of a supported floating type, ValueError unless on the first's device."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{function}: expected {name} to be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATING:
            raise TypeError(
                f"{function}: expected {name} of dtype float64, float32, bfloat16 or float16, got {tensor.dtype}"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{function}: expected {name} on the device of {first_name}, {first.device}, got {tensor.device}"
            )


def check_has_kernels(function: str, tensor: Tensor) -> None:
    """Raise ValueError for a CUDA tensor where this build has no CUDA kernels."""
    if tensor.is_cuda and not _library.has_cuda_kernels():
        raise ValueError(
            f"{function}: expected CPU tensors, as this build of vqdm_cuda has no CUDA kernels, got {tensor.device}; "
            "rebuild it where nvcc is found: pip install --no-build-isolation ."
        )


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where an input is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def shapes(*tensors: Tensor) -> str:
    """For messages. Called only where one is raised: a compiler cannot trace the text of symbolic sizes."""
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


def has_values(tensor: Tensor) -> bool:
    """Whether the numbers can be read here: not of a fake tensor, and not while a compiler traces."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
