"""Lookup-free quantizer: each number of a vector becomes its sign (LFQ of MAGVIT-v2, Yu et al. 2023; Open-MAGVIT2).

    z_q   = 1 where z > 0, else -1            straight-through gradient; K = 2^d codes
    index = sum_j [z_j > 0] 2^j  ("little", Open-MAGVIT2)    or 2^(d-1-j)  ("big", MAGVIT-v2, vector-quantize-pytorch)
    loss  = commitment_weight mean((z - sg z_q)^2)
            + entropy_weight (mean_i H(p_i) - diversity_weight H(mean_i p_i))

sg stops the gradient, and p_i = softmax over the codes c of 2 z_i . c / temperature. The entropies (bit_entropy.py)
make each vector sure of its code, and all codes used.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vqdm_cuda.quantizers.bit_entropy import entropy_of_mean, mean_entropy
from vqdm_cuda.quantizers.fixed import FixedQuantizer
from vqdm_cuda.quantizers.gradient import pass_gradient
from vqdm_cuda.quantizers.options import check_count, check_not_negative, check_positive

__all__ = ["LookupFreeQuantizer"]

BIT_ORDERS = ("little", "big")
_MOST_BITS = 52  # of an index, a whole number in float64
_MOST_BITS_OF_A_LAW = 20  # the diversity term takes 2^d numbers
_MOST_BITS_OF_FLOAT32 = 24


class LookupFreeQuantizer(FixedQuantizer):
    """Quantises vectors of d numbers to their signs, which are the d bits of the index; no codebook.

    The entropies are those of the vectors of all ranks of `group` together, the commitment term of each rank's own. All
    terms are exact: the 2^d probabilities of a vector are never formed (Open-MAGVIT2 approximates by groups of bits).

    Args:
        code_dim: d, at most 52, and at most 20 with the diversity term.
        bit_order: "little", the first dimension is the lowest bit, or "big", it is the highest.
        commitment_weight: weight of the term that draws features to their codes.
        entropy_weight: weight of both entropies.
        diversity_weight: weight, beside the entropy of the single vectors, of the batch's (MAGVIT-v2's gamma).
        temperature: of the softmax; small ones are nearly hard decisions.
    """

    kind: ClassVar[str] = "lookup_free"

    def __init__(
        self,
        code_dim: int,
        *,
        bit_order: str = "little",
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        temperature: float = 0.01,
    ) -> None:
        name = type(self).__name__
        check_not_negative(
            name,
            commitment_weight=commitment_weight,
            entropy_weight=entropy_weight,
            diversity_weight=diversity_weight,
        )
        check_positive(name, temperature=temperature)
        if bit_order not in BIT_ORDERS:
            raise ValueError(f"{name}: expected bit_order to be one of {BIT_ORDERS}, got {bit_order!r}")
        check_count(name, code_dim=code_dim)
        if code_dim > _MOST_BITS:
            raise ValueError(f"{name}: expected code_dim of at most {_MOST_BITS}, got {code_dim}")
        if code_dim > _MOST_BITS_OF_A_LAW and entropy_weight > 0 and diversity_weight > 0:
            raise ValueError(
                f"{name}: expected code_dim of at most {_MOST_BITS_OF_A_LAW} with entropy_weight and diversity_weight, "
                f"since the entropy of the batch takes 2^code_dim numbers, got {code_dim}"
            )
        self.bit_order = bit_order
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        self.diversity_weight = diversity_weight
        self.temperature = temperature
        super().__init__(2**code_dim, code_dim)

    def _constants(self) -> Tensor:
        """What each bit adds to the index."""
        powers = [2.0**j for j in range(self.code_dim)]
        return torch.tensor(powers if self.bit_order == "little" else powers[::-1], dtype=torch.float64, device="cpu")

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "code_dim": self.code_dim,
            "bit_order": self.bit_order,
            "commitment_weight": self.commitment_weight,
            "entropy_weight": self.entropy_weight,
            "diversity_weight": self.diversity_weight,
            "temperature": self.temperature,
        }

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        bits = rows.detach() > 0
        codes = torch.where(bits, 1.0, -1.0).to(rows.dtype)
        return self.pass_gradient(rows, codes), self._indices(bits), self.fit_terms(rows, codes)

    @torch.no_grad()
    def assign(self, rows: Tensor) -> Tensor:
        return self._indices(rows > 0)

    def lookup(self, indices: Tensor) -> Tensor:
        bits = indices[:, None] & self.constants.long()
        return torch.where(bits != 0, 1.0, -1.0).to(self.constants.dtype)

    def fit_terms(self, z: Tensor, z_q: Tensor) -> dict[str, Tensor]:
        z, z_q = torch.broadcast_tensors(z, z_q)
        error = F.mse_loss(z, z_q.detach(), reduction="sum") / max(z.numel(), 1)  # no vectors, no loss: not 0/0
        return {"commitment": self.commitment_weight * error}

    def pass_gradient(self, z: Tensor, z_q: Tensor) -> Tensor:
        return pass_gradient(z, z_q, "straight_through")

    def matching_terms(self, rows: Tensor) -> dict[str, Tensor]:
        if self.entropy_weight == 0:
            return {}
        logits = (4 / self.temperature) * rows  # of a bit: 2 z c / temperature for c = 1, less that for c = -1
        terms = {"sample_entropy": self.entropy_weight * mean_entropy(logits, self.group)}
        if self.diversity_weight > 0:
            weight = self.entropy_weight * self.diversity_weight
            terms["batch_entropy"] = -weight * entropy_of_mean(logits, self.group)
        return terms

    def _indices(
        self,
        bits: Tensor,  # [N, d] bool
    ) -> Tensor:  # [N] int64
        dtype = torch.float32 if self.code_dim <= _MOST_BITS_OF_FLOAT32 else torch.float64  # exact, in any order
        return torch.mv(bits.to(dtype), self.constants.to(dtype)).long()
