"""The two layouts of features, and the rows [N, d] that quantizers work on.

    channels first  [B, d, h, w]          indices [B, h, w]
    channels last   [N, d] or [B, n, d]   indices [N] or [B, n]

The layout follows from the number of dimensions alone, so decoding indices needs no hint: three dimensions of indices
are an image's, fewer are a list's.
"""

import torch
from torch import Tensor

__all__ = [
    "check_features",
    "check_indices",
    "features_from_rows",
    "index_shape",
    "rows_from_features",
    "working_dtype",
]


def check_features(
    name: str,  # who asks, for the message
    z: Tensor,  # [B, d, h, w] or [..., d] with 2 or 3 dimensions, floating point
    code_dim: int,
) -> None:
    """Raises TypeError for features that are not floating point and ValueError for any other layout."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name}: expected z to be a tensor, got {type(z).__name__}")
    if not z.is_floating_point():
        raise TypeError(f"{name}: expected z of a floating point type, got {z.dtype}")
    channels = {4: 1, 3: 2, 2: 1}.get(z.dim())
    if channels is None or z.shape[channels] != code_dim:
        raise ValueError(
            f"{name}: expected z [B, {code_dim}, h, w] (channels first) or [..., {code_dim}] with 2 or 3 dimensions "
            f"(channels last), got {list(z.shape)}"
        )


def check_indices(
    name: str,
    indices: Tensor,  # any shape, integer
    codebook_size: int,
) -> None:
    """Raises TypeError for indices that are not integers and ValueError for an index outside the codebook.

    The range is left unread where reading it would break a graph (compilation, CUDA graph capture).
    """
    if not isinstance(indices, Tensor):
        raise TypeError(f"{name}: expected indices to be a tensor, got {type(indices).__name__}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected indices of type int64 or int32, got {indices.dtype}")
    if torch.compiler.is_compiling() or (indices.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < codebook_size:
        raise ValueError(
            f"{name}: expected indices from 0 to {codebook_size - 1}, got {int(indices.min())} to {int(indices.max())}"
        )


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 and float32 for everything narrower: quantisation does not run in half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows_from_features(
    z: Tensor,  # [B, d, h, w] or [..., d]
) -> Tensor:
    """[N, d] in the working type, rows in the order of the indices; a view of z where its type and strides allow it."""
    if z.dim() == 4:
        z = z.permute(0, 2, 3, 1)
    if z.dtype != working_dtype(z.dtype):
        z = z.to(working_dtype(z.dtype), memory_format=torch.contiguous_format)  # one copy, not one for each change
    return z.reshape(-1, z.shape[-1])


def index_shape(
    z: Tensor,  # [B, d, h, w] or [..., d]
) -> torch.Size:
    """[B, h, w], [B, n] or [N]: one place for each vector."""
    return z.shape[:1] + z.shape[2:] if z.dim() == 4 else z.shape[:-1]


def features_from_rows(
    rows: Tensor,  # [N, d]
    shape: torch.Size,  # [B, h, w], [B, n] or [N]
) -> Tensor:
    """The inverse of `rows_from_features`: [B, d, h, w] or [..., d]."""
    z = rows.view(*shape, rows.shape[-1])
    return z.permute(0, 3, 1, 2) if z.dim() == 4 else z
