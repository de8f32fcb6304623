"""The alarm that tells of a codebook that collapses while there is time to stop the run.

Few tokens cannot use many codes: n tokens drawn evenly from K codes use K (1 - (1 - 1/K)^n) of them on average. What is
judged is the part of this that was used, so that neither a large codebook nor the few tokens of a small scale raise the
alarm.
"""

import math

from torch import Tensor

from vqdm_train.quantizer import QuantizerConfig

__all__ = ["UsageAlarm", "reachable_codes"]

_PATIENCE = 3  # windows in a row: the first steps of a run, and single batches, are low by chance


def reachable_codes(codebook_size: int, num_tokens: int) -> float:
    """How many codes so many tokens use on average where all codes are equally likely."""
    if codebook_size == 1 or num_tokens == 0:
        return float(min(codebook_size, num_tokens))
    return -codebook_size * math.expm1(num_tokens * math.log1p(-1 / codebook_size))


class UsageAlarm:
    """Says once that use of the codes fell below `threshold` of what was reachable, and again only after it rose."""

    def __init__(self, threshold: float, config: QuantizerConfig) -> None:
        self.threshold = threshold
        self.cure = _cure(config)
        self._low: dict[str, int] = {}  # windows in a row

    def look(
        self,
        counts: dict[str, Tensor],  # as `Window.counts`
    ) -> str | None:
        """A sentence where the use of some codes has now been low for long enough."""
        fallen = []
        for name, codes in counts.items():
            tokens, used = int(codes.sum()), int((codes > 0).sum())
            reachable = reachable_codes(len(codes), tokens)
            low = used < self.threshold * reachable
            self._low[name] = self._low.get(name, 0) + 1 if low else 0
            if self._low[name] == _PATIENCE:
                where = name.replace("_", " ") + ": " if name else ""
                fallen.append(f"{where}{used:,} of the {reachable:,.0f} codes that {tokens:,} tokens could reach")
        if not fallen:
            return None
        return (
            f"few codes are in use, for {_PATIENCE} logged steps in a row: {'; '.join(fallen)}. Most likely the other "
            f"codes lie far from all features; {self.cure}"
        )


def _cure(config: QuantizerConfig) -> str:
    """What moves unused codes, or features, of this quantizer."""
    cures = {
        "ema": "a larger quantizer.ema.revive_below moves unused codes to features",
        "online": "a smaller quantizer.online.decay moves unused codes to features sooner",
        "sinkhorn": "a larger optimizer.codebook_lr or quantizer.sinkhorn.num_iters spreads features over codes",
        "finite_scalar": "the features stay in few cells: a smaller optimizer.lr may help",
        "lookup_free": "a larger quantizer.lookup_free.diversity_weight spreads features over codes",
        "index_backprop": "a larger quantizer.index_backprop.entropy_weight spreads features over codes",
        "wasserstein": "a larger quantizer.wasserstein_weight or optimizer.codebook_lr moves codes to the features",
    }
    cure = cures.get(config.kind, "quantizer.kind=wasserstein moves codes to the features")
    takes_kmeans = config.kind in ("vector", "ema", "online", "wasserstein") and not (
        config.scales or config.residual_depth > 1
    )
    return cure + (", and quantizer.init=kmeans starts them there" if takes_kmeans and config.init == "random" else "")
