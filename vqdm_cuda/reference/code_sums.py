"""Code sums, by definition: one selection of rows per code.

    sums[k] = sum_{i : indices_i = k} z_i        counts[k] = #{i : indices_i = k}

Shapes: N features, K = num_codes codes, d dimensions.
"""

import torch
from torch import Tensor


def code_sums(
    z: Tensor,  # [..., N, d]
    indices: Tensor,  # [..., N]
    num_codes: int,  # K
) -> tuple[Tensor, Tensor]:  # sums [..., K, d], counts int64 [..., K]
    """Sum and number of the features of each code."""
    if z.dim() > 2:
        heads = [code_sums(*head, num_codes) for head in zip(z, indices, strict=True)]
        return torch.stack([sums for sums, _ in heads]), torch.stack([counts for _, counts in heads])
    chosen = [indices == k for k in range(num_codes)]
    sums = torch.stack([z.double()[rows].sum(0) for rows in chosen])
    return sums.to(torch.promote_types(z.dtype, torch.float32)), torch.stack([rows.sum() for rows in chosen])
