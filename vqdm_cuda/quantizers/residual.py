"""Residual quantizer: every vector is a sum of D codes, each nearest to what the others left over (RQ-VAE, Lee et al.
2022).

    r_0 = z;  for t = 1 .. D:
        i_t = nearest code of r_{t-1}                             one codebook for all depths
        r_t = r_{t-1} - e[i_t]
        s_t = s_{t-1} + e[i_t],  s_0 = 0
    z_q  = s_D
    loss = mean over t of the inner quantizer's terms between z and s_t, and matching terms between the r_{t-1} and e

The commitment of RQ-VAE is the mean over t of (z - sg s_t)^2. Where codes are trained by the loss, each receives
gradient from its own depth and all later ones. The published codebook is an `EMAQuantizer`, revive_below 1.
"""

from collections.abc import Callable
from functools import reduce
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from vqdm_cuda.quantizers.base import Quantized, Quantizer, detached, total
from vqdm_cuda.quantizers.layout import (
    check_features,
    check_indices,
    features_from_rows,
    index_shape,
    rows_from_features,
)
from vqdm_cuda.quantizers.options import check_count
from vqdm_cuda.quantizers.structure import Structure

__all__ = ["ResidualQuantizer"]


class ResidualQuantizer(Structure):
    """Quantises each vector into D indices: [B, h, w, D], [B, n, D] or [N, D].

    The inner quantizer's matching, and its `update`, see the vectors of all depths as one batch, once for each pass;
    RQ-VAE's own code moves the averages at every depth. An assignment of batches (Sinkhorn) is made for each depth.

    Args:
        inner: the quantizer that all depths share; its loss weights, gradient and matching apply.
        depth: D.
    """

    kind: ClassVar[str] = "residual"

    def __init__(self, inner: Quantizer, depth: int) -> None:
        check_count("ResidualQuantizer", depth=depth)
        super().__init__(inner, "every depth asks it for the codes of single vectors")
        self._refuse_unfit_for_residuals()
        self.depth = depth

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "inner": self.inner.config, "depth": self.depth}

    def forward(
        self,
        z: Tensor,  # [B, d, h, w] or [..., d]
        return_terms: bool = False,
    ) -> Any:
        check_features(type(self).__name__, z, self.code_dim)
        with torch.autocast(z.device.type, enabled=False):
            rows = rows_from_features(z)
            indices, residuals = self._scan(rows.detach(), self.inner.assign_batch)
            sums = torch.stack(list(accumulate(self._codes(indices)))).to(rows.dtype)  # added up as `decode` does
            # rows - rows.detach() is exactly zero: the residuals, with gradient to the features.
            terms = self.inner.fit_terms(rows, sums) | self.inner.matching_terms(
                (residuals + (rows - rows.detach())).view(-1, self.code_dim)
            )
            z_q = self.inner.pass_gradient(rows, sums[-1])
            if self.training:
                self.inner.update(residuals.view(-1, self.code_dim), indices.view(-1))
        z_q = features_from_rows(z_q.to(z.dtype), index_shape(z))
        quantized = Quantized(z_q, self._per_vector(indices, z), total(terms))
        return (quantized, detached(terms)) if return_terms else quantized

    @torch.no_grad()
    def encode(
        self,
        z: Tensor,  # [B, d, h, w] or [..., d]
    ) -> Tensor:
        """The indices alone, without a graph: int64 [B, h, w, D], [B, n, D] or [N, D]."""
        check_features(f"{type(self).__name__}.encode", z, self.code_dim)
        with torch.autocast(z.device.type, enabled=False):
            return self._per_vector(self._scan(rows_from_features(z), self.inner.assign)[0], z)

    def decode(
        self,
        indices: Tensor,  # [B, h, w, D], [B, n, D] or [N, D] int64
    ) -> Tensor:
        """z_q of the indices: [B, d, h, w], [B, n, d] or [N, d], equal to the forward pass's.

        Raises:
            TypeError: the indices are not integers.
            ValueError: they have no such shape, or one lies outside the codebook.
        """
        check_indices("ResidualQuantizer.decode", indices, self.codebook_size)
        D = self.depth
        if not 2 <= indices.dim() <= 4 or indices.shape[-1] != D:
            raise ValueError(
                f"ResidualQuantizer.decode: expected indices [B, h, w, {D}], [B, n, {D}] or [N, {D}], "
                f"got {list(indices.shape)}"
            )
        with torch.autocast(indices.device.type, enabled=False):
            codes = self._codes(indices.reshape(-1, D).T.long())
        return features_from_rows(reduce(torch.add, codes), indices.shape[:-1])

    @torch.no_grad()
    def _scan(
        self,
        rows: Tensor,  # [N, d]
        assign: Callable[[Tensor], Tensor],  # [N, d] -> [N]
    ) -> tuple[Tensor, Tensor]:
        """The indices [D, N] of all depths, and the residuals [D, N, d] that they were assigned to."""
        residuals = [rows]
        indices = [assign(rows)]
        for _ in range(1, self.depth):
            residuals.append(residuals[-1] - self.inner.lookup(indices[-1]).to(rows.dtype))
            indices.append(assign(residuals[-1]))
        return torch.stack(indices), torch.stack(residuals)

    def _codes(
        self,
        indices: Tensor,  # [D, N]
    ) -> tuple[Tensor, ...]:
        """The codes [N, d] of each depth, by one lookup; differentiable in the codebook's parameters."""
        return self.inner.lookup(indices.reshape(-1)).view(*indices.shape, self.code_dim).unbind()

    def _per_vector(
        self,
        indices: Tensor,  # [D, N]
        z: Tensor,
    ) -> Tensor:  # [B, h, w, D], [B, n, D] or [N, D]
        return indices.T.reshape(*index_shape(z), self.depth)

    def extra_repr(self) -> str:
        return f"depth={self.depth}"
