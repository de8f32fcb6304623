"""Quantizers with a table of codes that is searched for the nearest one: what they share.

    indices[i] = argmin_k ||z_i - e_k||^2                                   ties go to the smallest k
    terms      = commitment_weight mean((z - sg z_q)^2) + codebook_weight mean((z_q - sg z)^2)

The means are over all N d numbers, as in VAR and VQGAN, not sums over d. sg stops the gradient: the commitment term
trains the features, the codebook term the codes. VQGAN's "legacy" order, which OptVQ keeps, swaps the two weights.

The table `weight` is the codebook, unless a subclass makes another of it (a linear map, unit lengths). It is trained by
the loss, or a buffer that the subclass's `update` moves, or frozen.
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
from vqdm_cuda.quantizers.options import check_not_negative, check_positive
from vqdm_cuda.quantizers.per_vector import PerVectorQuantizer

__all__ = ["CodebookQuantizer"]


class CodebookQuantizer(PerVectorQuantizer):
    """Nearest-code quantizer with a table of codes.

    Args:
        codebook_size: K.
        code_dim: d.
        commitment_weight: weight of the term that draws features to their codes (the papers' beta).
        codebook_weight: weight of the term that draws codes to their features; 0 where no code follows a loss.
        gradient: "straight_through" or "rotation": the gradient from z_q to z.
        init_std: standard deviation of the initial table; None is (numbers of its rows)^-1/2, which gives rows of unit
            length on average.
        init_bound: draw the initial table evenly from [-init_bound, init_bound] instead.
        trained: the table is a parameter; else a buffer, which no optimizer can reach.
        table_dim: numbers of a row of the table, where they are not d.
    """

    moves_table: ClassVar[bool] = False  # `update` writes to it, whose values the backward pass still needs

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_weight: float,
        codebook_weight: float,
        gradient: str,
        init_std: float | None,
        init_bound: float | None,
        trained: bool = True,
        table_dim: int | None = None,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        name = type(self).__name__
        check_not_negative(name, commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        if gradient not in GRADIENTS:
            raise ValueError(f"{name}: expected gradient to be one of {GRADIENTS}, got {gradient!r}")
        for option, given in (("init_std", init_std), ("init_bound", init_bound)):
            if given is not None:
                check_positive(name, **{option: given})
        if init_std is not None and init_bound is not None:
            raise ValueError(f"{name}: expected init_std or init_bound, got both, {init_std} and {init_bound}")
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.gradient = gradient
        width = code_dim if table_dim is None else table_dim
        self.init_std = width**-0.5 if init_std is None and init_bound is None else init_std
        self.init_bound = init_bound
        table = torch.empty(codebook_size, width)
        self.weight: Tensor
        if trained:
            self.weight = nn.Parameter(table)
        else:
            self.register_buffer("weight", table)
        self._draw_table()

    def _draw_table(self) -> None:
        if self.init_bound is not None:
            nn.init.uniform_(self.weight, -self.init_bound, self.init_bound)
        elif self.init_std is not None:
            nn.init.normal_(self.weight, std=self.init_std)

    def reset_parameters(self) -> None:
        """Draws the table anew, from N(0, init_std^2 I) or evenly from [-init_bound, init_bound]."""
        self._draw_table()

    @torch.no_grad()
    def set_codes(
        self,
        table: Tensor,  # [K, d], or [K, table_dim]
    ) -> None:
        """Starts from given codes (k-means of features, another model's) instead of drawn ones.

        Raises:
            TypeError: the table is not a floating point tensor.
            ValueError: it has another shape, or holds a number that is not finite.
        """
        name = f"{type(self).__name__}.set_codes"
        if not isinstance(table, Tensor) or not table.is_floating_point():
            got = table.dtype if isinstance(table, Tensor) else type(table).__name__
            raise TypeError(f"{name}: expected table to be a floating point tensor, got {got}")
        if table.shape != self.weight.shape:
            raise ValueError(f"{name}: expected table {list(self.weight.shape)}, got {list(table.shape)}")
        if not table.to(self.weight.dtype).isfinite().all():
            raise ValueError(f"{name}: expected finite numbers of {self.weight.dtype} in table, got NaN or Inf")
        self.weight.copy_(table)

    def start_at(
        self,
        codes: Tensor,  # [K, d]
    ) -> None:
        """Starts from these codes, and a linear map of them, where there is one, from the identity."""
        self.set_codes(codes)

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
        }

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [self.weight] if isinstance(self.weight, nn.Parameter) else []

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        e = self._copied_codebook() if self.moves_table and self.training else self.codebook
        z_q, indices, commitment, codebook = nearest_step(rows, e)
        if self.gradient != "straight_through":
            z_q = self.pass_gradient(rows, z_q)
        return z_q, indices, self._terms(commitment, codebook)

    @torch.compiler.disable  # in a compiled graph the backward pass would take the copy again, after `update`
    def _copied_codebook(self) -> Tensor:
        return self.codebook.clone()

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
