"""Symmetric positive semi-definite matrices in float64: what `sqrtm`, `gaussian_w2` and the losses share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The largest d that this package's own kernels take. On the CPU, LAPACK is faster from here on (bench/README.md).
OWN_KERNELS_UP_TO = {"sqrtm": {"cpu": 24, "cuda": 256}, "gaussian_w2": {"cpu": 64, "cuda": 256}}


def own_kernels(op: str, a: Tensor) -> bool:  # [..., d, d]
    """Whether matrices of this size and place go to this package's kernels, or to LAPACK or the device's library."""
    return a.shape[-1] <= OWN_KERNELS_UP_TO[op].get(a.device.type, 0)


_FRAGMENT = torch.library.Library("vqdm", "FRAGMENT")


def define_by_library(schema: str, function: Callable[..., Any]) -> None:
    """torch.ops.vqdm.<name of the schema> as a Python function of plain tensor calls, opaque to compilers: it may look
    at values. (torch.library.custom_op does the same at four times the time per call.)"""
    _FRAGMENT.define(schema)
    _FRAGMENT.impl(schema.partition("(")[0], function, "CompositeExplicitAutograd")


def symmetrized(a: Tensor) -> Tensor:  # [..., d, d] -> float64 [..., d, d]
    """(a + a^T) / 2 in float64; halved first, so that no finite entry overflows."""
    half = a.double() / 2
    return half + half.mT


def all_finite(a: Tensor) -> Tensor:  # [..., d, d] -> bool [...]
    return a.abs().amax((-2, -1)) < torch.inf  # false for NaN, which amax hands on


def finite_or_identity(a: Tensor) -> tuple[Tensor, Tensor]:  # [..., d, d] -> [..., d, d], bool [...]
    """Replace each matrix that holds NaN or Inf by the identity, and say which were finite.

    LAPACK raises on NaN, or does not end, and one item of a batch must not decide for the others. No value is read by
    the host.
    """
    finite = all_finite(a)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return torch.where(finite[..., None, None], a, identity), finite


def negligible(largest: Tensor, d: int) -> Tensor:
    """The size below which an eigenvalue or singular value of a d x d float64 matrix is rounding: d u largest."""
    return d * torch.finfo(torch.float64).eps * largest
