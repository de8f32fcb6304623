"""k-means: codes that are means of the features nearest to them (Lloyd 1982), from a k-means++ start (Arthur and
Vassilvitskii 2007).

    start    e_1 is drawn evenly from the features, e_k with probability D_i / sum_i D_i, where D_i is the squared
             distance of feature i to the nearest code so far
    step     indices_i = argmin_k ||z_i - e_k||^2,  e_k = mean of the features with index k

It serves as the start of a codebook, and as VQGAN-LC's frozen table.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vqdm_cuda.distributed import gather_rows
from vqdm_cuda.ops._checks import check_floating, result_dtype
from vqdm_cuda.ops.code_sums import code_sums
from vqdm_cuda.ops.nearest_code import nearest_code

__all__ = ["kmeans"]


@torch.no_grad()
def kmeans(
    features: Tensor,  # [N, d] float64, float32, bfloat16 or float16
    num_codes: int,  # K
    *,
    num_iters: int = 10,
    seed: int = 0,
    group: ProcessGroup | None = None,
) -> Tensor:  # [K, d] float32, or float64
    """Returns K codes that describe the features: k-means++ draws, then `num_iters` steps of Lloyd's algorithm.

    The same features, in the same order, give the same codes for any number of threads. A code that is nearest to no
    feature stays where it is. Where fewer than K features differ, some codes are equal. The start takes O(N K d) time
    one code after the other.

    Args:
        num_iters: 0 leaves the codes of the start, which are features.
        seed: of the draws; torch's own generators are not touched.
        group: the features are those of all its ranks, in the order of the ranks, whose numbers may differ or be zero.
            Every rank must call, and gets the same codes.

    Raises:
        TypeError: features that are no tensor of a floating type, or an option that is not an int.
        ValueError: features that are not [N, d], fewer than K of them, or with squared distances that are not finite.

    Example:
        >>> quantizer.set_codes(kmeans(features, quantizer.codebook_size))
    """
    check_floating("kmeans", features=features)
    if features.dim() != 2 or features.shape[1] < 1:
        raise ValueError(f"kmeans: expected features [N, d] with d >= 1, got {list(features.shape)}")
    for name, value, least in (("num_codes", num_codes, 1), ("num_iters", num_iters, 0), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"kmeans: expected {name} to be an int, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"kmeans: expected {name} of at least {least}, got {value}")
    everything = gather_rows(features, group)
    if everything.shape[0] < num_codes:
        raise ValueError(f"kmeans: expected at least num_codes = {num_codes} features, got {everything.shape[0]}")
    if not (2 * everything.to(result_dtype(everything))).square().sum().isfinite():
        raise ValueError("kmeans: expected features with finite squared distances, got NaN, Inf or too large numbers")

    codes = _start(everything, num_codes, seed)
    for _ in range(num_iters):
        # Each rank searches for its own features; the sums are over all of them, in the same order everywhere.
        indices = gather_rows(nearest_code(features, codes)[1][:, None], group)[:, 0]
        sums, counts = code_sums(everything, indices, num_codes)
        codes = torch.where(counts[:, None] > 0, sums / counts[:, None], codes)
    return codes


def _start(
    features: Tensor,  # [N, d]
    num_codes: int,
    seed: int,
) -> Tensor:  # [K, d]
    """k-means++."""
    coordinates = features.T.to(result_dtype(features)).contiguous()  # [d, N]
    closest = torch.full_like(coordinates[0], torch.inf)
    difference, distances = torch.empty_like(closest), torch.empty_like(closest)
    chosen = torch.empty(num_codes, dtype=torch.int64, device=features.device)
    draws = torch.rand(num_codes, dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(seed))
    for k, draw in enumerate(draws.tolist()):
        chosen[k : k + 1] = place = _drawn(closest, draw)
        # Coordinate after coordinate: the order of a sum by torch would hang on the number of threads.
        distances.zero_()
        for of_all, of_code in zip(coordinates, coordinates.index_select(1, place), strict=True):
            distances.add_(torch.sub(of_all, of_code, out=difference).square_())
        torch.minimum(closest, distances, out=closest)
    return coordinates.index_select(1, chosen).T.contiguous()


def _drawn(
    weights: Tensor,  # [N] not negative
    draw: float,  # from [0, 1)
) -> Tensor:  # [1] int64
    """The place that the draw falls on, by weight; evenly where all weights are 0, or all infinite.

    Sums are over whole numbers, exact in any order: a sum over floats may differ from run to run on a GPU.
    """
    N, largest = weights.shape[0], float(weights.max())
    unit = 2.0**52 / N  # so that float64 holds the total
    shares = (weights / largest * unit if 0 < largest < torch.inf else torch.ones_like(weights)).long()
    up_to = shares.cumsum(0)
    return torch.searchsorted(up_to, (draw * up_to[-1:].double()).long(), right=True)
