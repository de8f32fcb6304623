"""Index backpropagation quantizer: all codes learn from every choice (IBQ, Shi et al. 2024, arXiv 2412.02692).

    l_ik      = z_i . e_k        p_i = softmax of l_i        p'_i = softmax of l_i / temperature
    indices_i = argmax_k l_ik                                           ties go to the smallest k
    z_q_i     = (onehot(indices_i) + p_i - sg p_i) e = e[indices_i]     so the gradient reaches z and e through p too
    loss      = mean((z_q - z)^2)
                + commitment_weight mean((z - sg e[indices])^2) + codebook_weight mean((e[indices] - sg z)^2)
                + entropy_weight (mean_i H(p'_i) - H(mean_i p'_i))

sg stops the gradient; the means of squares are over all N d numbers. The first term is the paper's double quantisation:
it trains features and codes at once, through the choice. The last makes each choice sure and all together even. Under
their names here the published weights of the second and third term are 1 and 0.25 (the order that OptVQ has as well).
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vqdm_cuda.distributed import all_reduce_sum
from vqdm_cuda.ops.nearest_code import nearest_code
from vqdm_cuda.quantizers.codebook import CodebookQuantizer
from vqdm_cuda.quantizers.lookup import lookup
from vqdm_cuda.quantizers.options import check_not_negative, check_positive
from vqdm_cuda.quantizers.soft_choice import soft_choice

__all__ = ["IndexBackpropQuantizer"]


class IndexBackpropQuantizer(CodebookQuantizer):
    """Quantizer that chooses the code of the largest inner product, with a gradient through the softmax of them all.

    Beyond z, e and their gradients a step needs the memory of a few blocks of logits, not of [N, K].

    With a `group` the entropies are of all its ranks' features together, on every rank; every rank must call forward
    and backward. The squares are means over each rank's own features, as in `VectorQuantizer`.

    Args:
        commitment_weight: weight of the term that draws features to their codes, beside the term of both.
        codebook_weight: weight of the term that draws codes to their features, beside the term of both.
        entropy_weight: weight of the entropies' difference; 0 saves a pass over the logits.
        temperature: of the softmax in the entropies.
        init_std, init_bound: as in `VectorQuantizer`; where neither is given, N(0, 1).
    """

    kind: ClassVar[str] = "index_backprop"

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_weight: float = 1.0,
        codebook_weight: float = 0.25,
        entropy_weight: float = 0.05,
        temperature: float = 0.01,
        init_std: float | None = None,
        init_bound: float | None = None,
    ) -> None:
        super().__init__(
            codebook_size,
            code_dim,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            gradient="straight_through",  # of structures that pass one by the codes alone; here the choice has its own
            init_std=1.0 if init_std is None and init_bound is None else init_std,
            init_bound=init_bound,
        )
        name = type(self).__name__
        check_not_negative(name, entropy_weight=entropy_weight)
        check_positive(name, temperature=temperature)
        self.entropy_weight = entropy_weight
        self.temperature = temperature

    @property
    def config(self) -> dict[str, Any]:
        config = super().config | {"entropy_weight": self.entropy_weight, "temperature": self.temperature}
        del config["gradient"]
        return config

    @property
    def unfit_for_residuals(self) -> str | None:
        return (
            "to pass its gradient through the chosen codes, as sums of codes do, got an IndexBackpropQuantizer, whose "
            "gradient goes through the choice among all codes"
        )

    @torch.no_grad()
    def assign(self, rows: Tensor) -> Tensor:
        """The index [N] of the largest inner product, of exactly equal ones and of all 0 the first.

        In float64, as the nearest code by ||z_i - e_k||^2 - ||e_k||^2, whose bits depend on z_i and e alone: products
        are told apart where they differ by about d 2^-52 times the largest code's square. The size of z_i, which
        decides nothing, is first made about that of the largest code, by a power of 2: products that float64 holds
        exactly stay so, and with them their ties.
        """
        e, rows = self.codebook.double(), rows.double()
        # ||e_k||^2 as a distance to the origin, summed as all distances are; NaN where e_k is not finite.
        squares, _ = nearest_code(e, torch.zeros_like(e[:1]))
        largest = rows.abs().amax(1, keepdim=True)
        reach = squares.nan_to_num(0, 0).max().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        rows = torch.where(largest > 0, rows / _power_of_2(largest) * _power_of_2(reach), rows)
        return nearest_code(rows, e, -squares)[1]

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        e = self.codebook.to(rows.dtype)
        indices = self.assign(rows)
        codes = lookup(e, indices)
        z_q, entropy, sums = soft_choice(rows, e, codes, self.temperature if self.entropy_weight else None)
        per_number = 1 / max(rows.numel(), 1)  # no vectors, no loss: not 0/0
        terms = {"soft": per_number * F.mse_loss(z_q, rows, reduction="sum")} | self.fit_terms(rows, codes)
        if self.entropy_weight:
            terms |= self._entropy_terms(entropy, sums, rows)
        return z_q, indices, terms

    def _entropy_terms(
        self,
        entropy: Tensor,  # [] sum over the rows
        sums: Tensor,  # [K]
        rows: Tensor,  # [N, d]
    ) -> dict[str, Tensor]:
        """Of the mean over the rows of all ranks."""
        statistics = torch.cat([sums, entropy[None], sums.new_full((1,), rows.shape[0])])
        if self.group is not None:
            statistics = all_reduce_sum(statistics, self.group)
        mean = statistics[:-1] / statistics[-1].clamp_min(1)
        return {
            "sample_entropy": self.entropy_weight * mean[-1].to(rows.dtype),
            "batch_entropy": -self.entropy_weight * torch.special.entr(mean[:-1]).sum().to(rows.dtype),
        }


def _power_of_2(sizes: Tensor) -> Tensor:
    """Of each positive number the largest power of 2 that is not above it."""
    return sizes / (2 * torch.frexp(sizes).mantissa)
