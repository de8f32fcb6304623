"""Multi-head quantizer: a vector in H pieces, each quantised by the same codebook (MoVQ, Zheng et al. 2022; OptVQ).

    z_i = (z_i1, ..., z_iH)        head h has the numbers h d ... (h + 1) d - 1, counted from 0
    q(z_i) = (q(z_i1), ..., q(z_iH))

H indices stand for a vector, so K codes of d numbers make K^H of H d. The inner quantizer sees the pieces of all
vectors as one batch, in the order (image, position, head): its matching, or its Sinkhorn assignment, is over all heads
together.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from vqdm_cuda.quantizers.base import Quantized, Quantizer
from vqdm_cuda.quantizers.layout import check_features, features_from_rows, index_shape, rows_from_features
from vqdm_cuda.quantizers.options import check_bool, check_count
from vqdm_cuda.quantizers.structure import Structure

__all__ = ["MultiHeadQuantizer"]


class MultiHeadQuantizer(Structure):
    """Quantises vectors of H d numbers into H indices each: [B, h, w, H], [B, n, H] or [N, H].

    `codebook` is the inner quantizer's, [K, d]: `code_dim` is H d, that of the vectors taken.

    Args:
        inner: quantises each piece on its own (not several scales, nor heads again); its options apply.
        num_heads: H.
        heads_first: indices [B, H, h, w], or [B, H, n], instead: OptVQ's order for images.
    """

    kind: ClassVar[str] = "multi_head"

    def __init__(self, inner: Quantizer, num_heads: int, *, heads_first: bool = False) -> None:
        check_count("MultiHeadQuantizer", num_heads=num_heads)
        check_bool("MultiHeadQuantizer", heads_first=heads_first)
        why = "a head is a list of pieces of vectors without height and width"
        super().__init__(inner, why, num_pieces=num_heads)
        self.num_heads = num_heads
        self.heads_first = heads_first

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "inner": self.inner.config,
            "num_heads": self.num_heads,
            "heads_first": self.heads_first,
        }

    def forward(
        self,
        z: Tensor,  # [B, H d, h, w] or [..., H d]
        return_terms: bool = False,
    ) -> Any:
        check_features(type(self).__name__, z, self.code_dim)
        (z_q, indices, loss), terms = self.inner(self._pieces(z), return_terms=True)
        z_q = features_from_rows(z_q.to(z.dtype).view(-1, self.code_dim), index_shape(z))
        quantized = Quantized(z_q, self._per_vector(indices, z), loss)
        return (quantized, terms) if return_terms else quantized

    @torch.no_grad()
    def encode(
        self,
        z: Tensor,  # [B, H d, h, w] or [..., H d]
    ) -> Tensor:
        """The indices alone, without a graph: int64 [B, h, w, H], [B, n, H] or [N, H] (or heads first)."""
        check_features(f"{type(self).__name__}.encode", z, self.code_dim)
        return self._per_vector(self.inner.encode(self._pieces(z)), z)

    def decode(
        self,
        indices: Tensor,  # [B, h, w, H], [B, n, H] or [N, H] int64 (or heads first)
    ) -> Tensor:
        """z_q of the indices: [B, H d, h, w], [B, n, H d] or [N, H d], equal to the forward pass's.

        Raises:
            TypeError: the indices are not integers.
            ValueError: they have no such shape, or one lies outside the codebook.
        """
        if not isinstance(indices, Tensor):
            raise TypeError(f"MultiHeadQuantizer.decode: expected indices to be a tensor, got {type(indices).__name__}")
        heads_at = 1 if self.heads_first else indices.dim() - 1
        if not 2 <= indices.dim() <= 4 or indices.shape[heads_at] != self.num_heads:
            H = self.num_heads
            expected = f"[B, {H}, h, w], [B, {H}, n]" if self.heads_first else f"[B, h, w, {H}], [B, n, {H}]"
            raise ValueError(
                f"MultiHeadQuantizer.decode: expected indices {expected} or [N, {H}], got {list(indices.shape)}"
            )
        indices = indices.movedim(heads_at, -1)
        codes = self.inner.decode(indices.reshape(-1))  # [N H, d]
        return features_from_rows(codes.view(-1, self.code_dim), indices.shape[:-1])

    def _pieces(self, z: Tensor) -> Tensor:
        """[N H, d], the heads of a vector one after the other."""
        return rows_from_features(z).reshape(-1, self.inner.code_dim)

    def _per_vector(
        self,
        indices: Tensor,  # [N H]
        z: Tensor,
    ) -> Tensor:
        indices = indices.view(*index_shape(z), self.num_heads)
        return indices.movedim(-1, 1) if self.heads_first else indices

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, heads_first={self.heads_first}"
