"""The scales of a multi-scale quantizer as they are given: checked, and in one form."""

from collections.abc import Sequence

__all__ = ["grids", "normalized_weights"]

# Larger ones are pixels taken for latent positions, and the matrices that resize them would fill the memory.
LARGEST_SCALE = 1024


def grids(scales: Sequence[int | Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """(h, w) of each scale."""
    found = []
    for scale in scales:
        grid = tuple(scale) if isinstance(scale, Sequence) else (scale, scale)
        if len(grid) != 2 or not all(isinstance(side, int) and side >= 1 for side in grid):
            raise ValueError(f"MultiScaleQuantizer: expected scales of positive ints or (h, w) pairs, got {scale!r}")
        found.append((grid[0], grid[1]))
    if not found:
        raise ValueError("MultiScaleQuantizer: expected at least one scale, got none")
    if max(found[-1]) > LARGEST_SCALE:
        raise ValueError(
            f"MultiScaleQuantizer: expected scales in latent positions, at most {LARGEST_SCALE} along a side, "
            f"got {found[-1]}"
        )
    if any(h > found[-1][0] or w > found[-1][1] for h, w in found):
        raise ValueError(f"MultiScaleQuantizer: expected no scale larger than the last, got {found}")
    return tuple(found)


def normalized_weights(scale_weights: Sequence[float], num_scales: int) -> list[float]:
    """The weights of the scales divided by their sum."""
    weights = list(scale_weights)
    total = sum(weights)
    if len(weights) != num_scales or any(not weight >= 0 for weight in weights) or not 0 < total < float("inf"):
        raise ValueError(
            f"MultiScaleQuantizer: expected scale_weights to be {num_scales} finite numbers, one for each scale, "
            f"none negative and not all 0, got {weights}"
        )
    return [weight / total for weight in weights]
