"""Quantizers that treat each vector on its own.

    indices = assign(rows)    z_q = lookup(indices)    loss = sum of fit_terms(rows, z_q) and matching_terms(rows)

A subclass gives these steps, of which structures over residuals build passes of their own; `quantize` is the plain
pass, which a subclass may run faster. In training the indices are those of `assign_batch`, which may look at all rows,
and `update` then moves what no gradient moves: averages, counts, codes that nobody selects.
"""

from abc import abstractmethod
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

__all__ = ["PerVectorQuantizer"]


class PerVectorQuantizer(Quantizer):
    """A quantizer in which the index of a vector, as `encode` gives it, depends on that vector alone."""

    trains_maps: ClassVar[bool] = True  # its loss trains what stands between codes and z_q, as the phi of scales do
    queue_size: int = 0  # of how many vectors, of earlier steps too, `matching_terms` keeps a set; 0: its rows alone

    @property
    def unfit_for_residuals(self) -> str | None:
        """What, if anything, makes this quantizer unfit for what other codes left over (several scales or depths)."""
        return None

    @abstractmethod
    def assign(
        self,
        rows: Tensor,  # [N, d]
    ) -> Tensor:
        """The index [N] int64 of each row; not differentiable."""

    def assign_batch(
        self,
        rows: Tensor,  # [N, d]
    ) -> Tensor:
        """The indices [N] int64 of the forward pass; in training they may depend on all rows together."""
        return self.assign(rows)

    @abstractmethod
    def lookup(
        self,
        indices: Tensor,  # [N] int64
    ) -> Tensor:
        """The codes [N, d] in float32 or float64; differentiable in the codebook's parameters."""

    @abstractmethod
    def fit_terms(
        self,
        z: Tensor,  # [..., d]
        z_q: Tensor,  # [..., d], broadcasts with z
    ) -> dict[str, Tensor]:
        """Weighted differentiable terms that compare each vector with its quantised one."""

    @abstractmethod
    def pass_gradient(
        self,
        z: Tensor,  # [N, d]
        z_q: Tensor,  # [N, d]
    ) -> Tensor:
        """z_q in value, with this quantizer's gradient to z."""

    def matching_terms(
        self,
        rows: Tensor,  # [N, d] the vectors that were assigned
    ) -> dict[str, Tensor]:
        """Weighted differentiable terms that compare the set of all vectors with the codebook; none by default."""
        return {}

    def update(
        self,
        rows: Tensor,  # [N, d] the vectors that were assigned in this training pass, without a graph
        indices: Tensor,  # [N] int64, their codes
    ) -> None:
        """Moves the state that training changes outside the loss, once for each pass; every rank of `group` must call.

        Not compiled: a subclass with state marks its own with `torch.compiler.disable`.
        """

    def quantize(
        self,
        rows: Tensor,  # [N, d] float32 or float64
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(z_q [N, d] with its gradient to the rows, indices [N], fit terms)."""
        indices = self.assign_batch(rows.detach())
        codes = self.lookup(indices).to(rows.dtype)
        return self.pass_gradient(rows, codes), indices, self.fit_terms(rows, codes)

    def forward(
        self,
        z: Tensor,  # [B, d, h, w] or [..., d]
        return_terms: bool = False,
    ) -> Any:
        check_features(type(self).__name__, z, self.code_dim)
        with torch.autocast(z.device.type, enabled=False):
            rows = rows_from_features(z)
            z_q, indices, terms = self.quantize(rows)
            terms = terms | self.matching_terms(rows)
            if self.training:
                self.update(rows.detach(), indices)
        z_q = features_from_rows(z_q.to(z.dtype), index_shape(z))
        loss = total(terms) if terms else rows.new_zeros(())
        quantized = Quantized(z_q, indices.view(index_shape(z)), loss)
        return (quantized, detached(terms)) if return_terms else quantized

    @torch.no_grad()
    def encode(
        self,
        z: Tensor,  # [B, d, h, w] or [..., d]
    ) -> Tensor:
        """The indices alone, without a graph: int64 [B, h, w], [B, n] or [N]."""
        check_features(f"{type(self).__name__}.encode", z, self.code_dim)
        with torch.autocast(z.device.type, enabled=False):
            indices = self.assign(rows_from_features(z))
        return indices.view(index_shape(z))

    def decode(
        self,
        indices: Tensor,  # [B, h, w], [B, n] or [N] int64
    ) -> Tensor:
        """z_q of the indices: [B, d, h, w], [B, n, d] or [N, d], equal to the forward pass's.

        Raises:
            TypeError: the indices are not integers.
            ValueError: they have no such shape, or one lies outside the codebook.
        """
        name = f"{type(self).__name__}.decode"
        check_indices(name, indices, self.codebook_size)
        if not 1 <= indices.dim() <= 3:
            raise ValueError(f"{name}: expected indices [B, h, w], [B, n] or [N], got {list(indices.shape)}")
        with torch.autocast(indices.device.type, enabled=False):
            codes = self.lookup(indices.reshape(-1).long())
        return features_from_rows(codes, indices.shape)
