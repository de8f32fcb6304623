"""Online clustering quantizer: codes that are seldom chosen move to features (CVQ-VAE, Zheng and Vedaldi 2023).

With c_k the share of the step's features that chose code k, g the decay and K codes:

    p_k <- g p_k + (1 - g) c_k                                          running usage, from 0
    a_k  = exp(-10 K p_k / (1 - g) - 1e-3)                              near 1 for a code that is not used
    e_k <- (1 - a_k) e_k + a_k anchor_k

    anchor  closest        the feature nearest to the code
            random         one of the features, each of them once before any comes again
            probabilistic  a feature drawn from softmax_i(-||z_i - e_k||^2)

The codes are trained by the loss of the vector quantizer as well; loss and z_q are those of the codes before the move.
Features are those of all ranks of a `group`, each of which searches for a part of the codes.
"""

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from vqdm_cuda.distributed import all_reduce_sum, gather_rows, shared_seed
from vqdm_cuda.ops.code_sums import code_sums
from vqdm_cuda.ops.nearest_code import nearest_code
from vqdm_cuda.quantizers.codebook import CodebookQuantizer
from vqdm_cuda.quantizers.draws import drawn_rows
from vqdm_cuda.quantizers.options import check_decay
from vqdm_cuda.quantizers.state import move

__all__ = ["OnlineClusteringQuantizer"]

ANCHORS = ("closest", "random", "probabilistic")

# A smaller part of the way to an anchor moves no digit of a code, unless the anchor is thousands of times as far away.
_STILL = 2.0**-64


class OnlineClusteringQuantizer(CodebookQuantizer):
    """Nearest-code quantizer that draws unused codes to the features.

    Distances are Euclidean (the published code has cosines as another choice, and no exchange between ranks). A step
    in which a feature is not finite, or whose codes their type cannot hold, moves nothing. The optimizer's momentum of
    a code that moved is left alone. Activation checkpointing would run the pass twice, the second time on codes that
    have moved: leave the quantizer out of it.

    Args:
        decay: g, from 0 to less than 1.
        anchors: "closest", "random" or "probabilistic", the published default. All but "closest" draw from torch's
            default generator on the CPU.
        Others as in `VectorQuantizer`.
    """

    kind: ClassVar[str] = "online"
    moves_table: ClassVar[bool] = True

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        decay: float = 0.99,
        anchors: str = "probabilistic",
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        gradient: str = "straight_through",
        init_std: float | None = None,
        init_bound: float | None = None,
    ) -> None:
        super().__init__(
            codebook_size,
            code_dim,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            gradient=gradient,
            init_std=init_std,
            init_bound=init_bound,
        )
        name = type(self).__name__
        check_decay(name, decay)
        if anchors not in ANCHORS:
            raise ValueError(f"{name}: expected anchors to be one of {ANCHORS}, got {anchors!r}")
        self.decay = decay
        self.anchors = anchors
        self.usage: Tensor
        self.register_buffer("usage", torch.zeros(codebook_size))  # p

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"decay": self.decay, "anchors": self.anchors}

    def reset_parameters(self) -> None:
        """Draws the codes anew, and forgets their use."""
        super().reset_parameters()
        self.usage.zero_()

    def set_codes(self, table: Tensor) -> None:
        super().set_codes(table)
        self.usage.zero_()

    @torch.compiler.disable
    @torch.no_grad()
    def update(self, rows: Tensor, indices: Tensor) -> None:
        """One step of the running usage, and of the codes to their anchors."""
        K = self.codebook_size
        counts = code_sums(rows, indices, K)[1]
        if self.group is not None:
            counts = all_reduce_sum(counts, self.group)
        features = gather_rows(rows, self.group)
        if features.shape[0] == 0:
            return
        usage = torch.lerp(counts.double() / features.shape[0], self.usage.double(), self.decay)
        way = torch.exp(-10 * K * usage / (1 - self.decay) - 1e-3)
        moving = (way > _STILL).nonzero()[:, 0]  # well used codes need no anchor, which saves most of the search
        codes = self.weight.double()
        anchors = self._anchors(self.weight[moving], features).double()
        codes[moving] = torch.lerp(codes[moving], anchors, way[moving, None])
        move([(self.usage, usage), (self.weight, codes)], features.isfinite().all())

    def _anchors(
        self,
        codes: Tensor,  # [k, d] those that move, the same on all ranks
        features: Tensor,  # [N, d] of all ranks
    ) -> Tensor:  # [k, d]
        number = codes.shape[0]
        if self.anchors == "random":
            return drawn_rows(features, number, shared_seed(self.group))
        seed = shared_seed(self.group) if self.anchors == "probabilistic" else 0
        rank, ranks = (0, 1) if self.group is None else (dist.get_rank(self.group), dist.get_world_size(self.group))
        first, last = number * rank // ranks, number * (rank + 1) // ranks
        chosen = torch.zeros(number, dtype=torch.int64, device=features.device)
        chosen[first:last] = self._chosen(codes[first:last], features, seed, first)
        if self.group is not None:
            chosen = all_reduce_sum(chosen, self.group)
        return features.index_select(0, chosen)

    def _chosen(
        self,
        codes: Tensor,  # [k, d] some of the codes
        features: Tensor,  # [N, d]
        seed: int,
        first: int,  # the number of the first of these codes among those that move
    ) -> Tensor:  # [k] int64
        """The number of each code's anchor among the features."""
        if self.anchors == "closest":
            return nearest_code(codes, features)[1]
        # argmin_i (||e_k - z_i||^2 - Gumbel_ki) is a draw from the softmax of -||e_k - z_i||^2.
        one = torch.ones(1, dtype=torch.float64, device=features.device)
        no_bias = torch.zeros(1, features.shape[0], dtype=torch.float64, device=features.device)
        return torch.ops.vqdm.pair_argmin(codes[None], features[None], no_bias, one, True, seed, first)[0]
