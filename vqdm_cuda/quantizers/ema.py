"""EMA quantizer: codes are running means of the features that chose them (VQ-VAE, van den Oord et al. 2017, app. A).

With n_k features of code k in a step, s_k their sum, g the decay and K codes:

    N_k <- g N_k + (1 - g) n_k          m_k <- g m_k + (1 - g) s_k
    e_k = m_k / N~_k                    N~_k = (N_k + eps) / (N + K eps) N,   N = sum_k N_k       (Laplace smoothing)
    loss = commitment_weight mean((z - sg z_q)^2)

z_q is of the codes before the step. N starts at 1 and m at e, so that a code that nobody selects stays where it is
while its N is far above eps (then, after about log eps / log g steps, it sinks to 0). Where N starts at 0, as in some
public code, the first step throws such codes far away, to about e / eps; there N~ stays at eps while m decays, so they
come back by the factor g a step, and past the features (docs/experiments.md, figure5).

Dead codes: with `revive_below`, a code with N_k below it starts again at one of the step's features, chosen at random,
no feature twice before each was once, with N_k = revive_below and m_k = N_k e_k (RQ-VAE, Lee et al. 2022, has 1).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from vqdm_cuda.distributed import all_reduce_sum, gather_rows, shared_seed
from vqdm_cuda.ops.code_sums import code_sums
from vqdm_cuda.quantizers.codebook import CodebookQuantizer
from vqdm_cuda.quantizers.draws import drawn_rows
from vqdm_cuda.quantizers.options import check_decay, check_not_negative, check_positive
from vqdm_cuda.quantizers.state import move

__all__ = ["EMAQuantizer"]


class EMAQuantizer(CodebookQuantizer):
    """Nearest-code quantizer whose codebook is an exponential moving average of the features.

    Counts and sums are those of all ranks of `group`, so codebook and averages are equal on all of them. A step in
    which a feature is not finite, or that has no features, leaves both as they were; so does one whose averages their
    type cannot hold. Activation checkpointing would run the pass twice, the second time on codes that have moved: leave
    the quantizer out of it.

    Args:
        decay: g, from 0 to less than 1. 0.99 in VQGAN's and RQ-VAE's code; vector-quantize-pytorch's default is 0.8.
        smoothing: eps.
        revive_below: N_k under which a code starts anew; 0 never does. Asks for features of all ranks in every step,
            and draws from torch's default generator on the CPU.
        Others as in `VectorQuantizer`; no gradient reaches the codes.
    """

    kind: ClassVar[str] = "ema"
    moves_table: ClassVar[bool] = True
    trains_maps: ClassVar[bool] = False  # the commitment term alone, which is the features'

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        decay: float = 0.99,
        smoothing: float = 1e-5,
        revive_below: float = 0.0,
        commitment_weight: float = 0.25,
        gradient: str = "straight_through",
        init_std: float | None = None,
        init_bound: float | None = None,
    ) -> None:
        super().__init__(
            codebook_size,
            code_dim,
            commitment_weight=commitment_weight,
            codebook_weight=0.0,
            gradient=gradient,
            init_std=init_std,
            init_bound=init_bound,
            trained=False,
        )
        name = type(self).__name__
        check_decay(name, decay)
        check_positive(name, smoothing=smoothing)
        check_not_negative(name, revive_below=revive_below)
        self.decay = decay
        self.smoothing = smoothing
        self.revive_below = revive_below
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("counts", torch.ones(codebook_size))  # N
        self.register_buffer("sums", self.weight.clone())  # m

    @property
    def config(self) -> dict[str, Any]:
        config = super().config | {
            "decay": self.decay,
            "smoothing": self.smoothing,
            "revive_below": self.revive_below,
        }
        del config["codebook_weight"]
        return config

    def reset_parameters(self) -> None:
        """Draws the codes anew, and starts their averages there."""
        super().reset_parameters()
        self._start_averages()

    def set_codes(self, table: Tensor) -> None:
        super().set_codes(table)
        self._start_averages()

    def _start_averages(self) -> None:
        self.counts.fill_(1)
        self.sums.copy_(self.weight)

    def _terms(self, commitment: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        return {"commitment": self.commitment_weight * commitment}

    @torch.compiler.disable
    @torch.no_grad()
    def update(self, rows: Tensor, indices: Tensor) -> None:
        """One step of the averages, in float64."""
        K, rows = self.codebook_size, rows.double()
        new_sums, new_counts = code_sums(rows, indices, K)
        new_counts = new_counts.double()
        if self.group is not None:
            new_sums, new_counts = all_reduce_sum(new_sums, self.group), all_reduce_sum(new_counts, self.group)
        counts = torch.lerp(new_counts, self.counts.double(), self.decay)
        sums = torch.lerp(new_sums, self.sums.double(), self.decay)
        total = counts.sum()
        smoothed = (counts + self.smoothing) / (total + K * self.smoothing) * total
        codes = sums / smoothed[:, None]
        # A feature that is not finite shows in the sums.
        moves = new_counts.any() & new_sums.isfinite().all()
        if self.revive_below:
            features = gather_rows(rows, self.group)
            if not features.shape[0]:
                return
            dead = counts < self.revive_below
            drawn = drawn_rows(features, K, shared_seed(self.group))
            fresh = drawn[dead.cumsum(0) - 1]  # the first dead code takes the first, and so on
            codes = torch.where(dead[:, None], fresh, codes)
            counts = torch.where(dead, self.revive_below, counts)
            sums = torch.where(dead[:, None], self.revive_below * codes, sums)
        move([(self.counts, counts), (self.sums, sums), (self.weight, codes)], moves)
