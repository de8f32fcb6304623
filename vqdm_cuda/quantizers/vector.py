"""Vector quantizer: nearest code of a trained codebook (VQ-VAE, van den Oord et al. 2017; VQGAN, Esser et al. 2021).

    indices[i] = argmin_k ||z_i - e_k||^2                                   ties go to the smallest k
    loss       = commitment_weight mean((z - sg z_q)^2) + codebook_weight mean((z_q - sg z)^2)

The means are over all N d numbers, as in VAR and VQGAN, not sums over d. sg stops the gradient: the commitment term
trains the features, the codebook term the codes. VQGAN's "legacy" order, which OptVQ keeps, swaps the two weights.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_cuda.ops.nearest_code import nearest_code
from vqdm_cuda.quantizers.gradient import GRADIENTS, pass_gradient
from vqdm_cuda.quantizers.layout import working_dtype
from vqdm_cuda.quantizers.lookup import lookup
from vqdm_cuda.quantizers.nearest import nearest_step
from vqdm_cuda.quantizers.per_vector import PerVectorQuantizer

__all__ = ["VectorQuantizer"]


class VectorQuantizer(PerVectorQuantizer):
    """Nearest-code quantizer with a codebook trained by gradient descent.

    Args:
        codebook_size: K.
        code_dim: d.
        commitment_weight: weight of the term that draws features to their codes (the papers' beta).
        codebook_weight: weight of the term that draws codes to their features.
        gradient: "straight_through" or "rotation": the gradient from z_q to z.
        init_std: standard deviation of the initial codes; None is d^-1/2, which gives codes of unit length on average.
        init_bound: draw the initial codes evenly from [-init_bound, init_bound] instead.
        freeze_codebook: keep the codes as they were drawn or loaded. They are then a buffer, which no optimizer can
            reach; asks for codebook_weight=0, since nothing could follow that term.
    """

    kind: ClassVar[str] = "vector"

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        gradient: str = "straight_through",
        init_std: float | None = None,
        init_bound: float | None = None,
        freeze_codebook: bool = False,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        name = type(self).__name__
        for option, value in (("commitment_weight", commitment_weight), ("codebook_weight", codebook_weight)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected {option} to be finite and not negative, got {value}")
        if gradient not in GRADIENTS:
            raise ValueError(f"{name}: expected gradient to be one of {GRADIENTS}, got {gradient!r}")
        for option, given in (("init_std", init_std), ("init_bound", init_bound)):
            if given is not None and not 0 < given < float("inf"):
                raise ValueError(f"{name}: expected {option} to be finite and positive, got {given}")
        if init_std is not None and init_bound is not None:
            raise ValueError(f"{name}: expected init_std or init_bound, got both, {init_std} and {init_bound}")
        if freeze_codebook and codebook_weight != 0:
            raise ValueError(
                f"{name}: expected codebook_weight 0 with freeze_codebook, since frozen codes follow no term, "
                f"got {codebook_weight}"
            )
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.gradient = gradient
        self.init_std = code_dim**-0.5 if init_std is None and init_bound is None else init_std
        self.init_bound = init_bound
        self.freeze_codebook = freeze_codebook
        self.weight: Tensor
        if freeze_codebook:
            self.register_buffer("weight", torch.empty(codebook_size, code_dim))
        else:
            self.weight = nn.Parameter(torch.empty(codebook_size, code_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the codes anew, from N(0, init_std^2 I) or evenly from [-init_bound, init_bound]."""
        if self.init_bound is not None:
            nn.init.uniform_(self.weight, -self.init_bound, self.init_bound)
        elif self.init_std is not None:
            nn.init.normal_(self.weight, std=self.init_std)

    @property
    def codebook(self) -> Tensor:
        return self.weight

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "codebook_size": self.codebook_size,
            "code_dim": self.code_dim,
            "commitment_weight": self.commitment_weight,
            "codebook_weight": self.codebook_weight,
            "gradient": self.gradient,
            "init_std": self.init_std,
            "init_bound": self.init_bound,
            "freeze_codebook": self.freeze_codebook,
        }

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [self.weight] if isinstance(self.weight, nn.Parameter) else []

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        z_q, indices, commitment, codebook = nearest_step(rows, self.codebook)
        if self.gradient != "straight_through":
            z_q = self.pass_gradient(rows, z_q)
        return z_q, indices, self._terms(commitment, codebook)

    @torch.no_grad()
    def assign(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.codebook)[1]

    def lookup(self, indices: Tensor) -> Tensor:
        e = self.codebook
        return lookup(e.to(working_dtype(e.dtype)), indices)

    def fit_terms(self, z: Tensor, z_q: Tensor) -> dict[str, Tensor]:
        z, z_q = torch.broadcast_tensors(z, z_q)
        per_number = 1 / max(z.numel(), 1)  # no vectors, no loss: not 0/0
        return self._terms(
            per_number * F.mse_loss(z, z_q.detach(), reduction="sum"),
            per_number * F.mse_loss(z_q, z.detach(), reduction="sum"),
        )

    def _terms(self, commitment: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        return {"commitment": self.commitment_weight * commitment, "codebook": self.codebook_weight * codebook}

    def pass_gradient(self, z: Tensor, z_q: Tensor) -> Tensor:
        return pass_gradient(z, z_q, self.gradient)
