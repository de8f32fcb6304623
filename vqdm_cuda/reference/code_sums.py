"""Code sums, by definition.

    sums[k] = sum_{i : indices_i = k} z_i        counts[k] = #{i : indices_i = k}

The rows of a code, in their order, are cut into chunks of 256; each chunk is summed from left to right in float64,
starting from 0, the chunks' sums from left to right in float64, and the total is rounded once to the output type.

Shapes: N features, K = num_codes codes, d dimensions.
"""

import torch
from torch import Tensor

_CHUNK_ROWS = 256


def code_sums(
    z: Tensor,  # [..., N, d]
    indices: Tensor,  # [..., N]
    num_codes: int,  # K
) -> tuple[Tensor, Tensor]:  # sums [..., K, d], counts int64 [..., K]
    """Sum and number of the features of each code."""
    if z.dim() > 2:
        heads = [code_sums(*head, num_codes) for head in zip(z, indices, strict=True)]
        return torch.stack([sums for sums, _ in heads]), torch.stack([counts for _, counts in heads])
    counts = torch.bincount(indices, minlength=num_codes)
    of_codes = z.double()[indices.argsort(stable=True)].split(counts.tolist())
    sums = [_added(torch.stack([_added(chunk) for chunk in rows.split(_CHUNK_ROWS)])) for rows in of_codes]
    return torch.stack(sums).to(torch.promote_types(z.dtype, torch.float32)), counts


def _added(rows: Tensor) -> Tensor:  # [n, d] -> [d], left to right from 0
    total = rows.new_zeros(rows.shape[1])
    for row in rows:
        total = total + row
    return total
