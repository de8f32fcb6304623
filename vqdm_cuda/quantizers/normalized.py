"""Normalized quantizer: features and codes are compared by direction alone (ViT-VQGAN, Yu et al. 2022, as "factorized"
and l2-normalised codes; LlamaGen, Sun et al. 2024; the VQGAN-FC of later tables).

    u_i       = z_i / max(||z_i||, 1e-12)         e_k = E_k / max(||E_k||, 1e-12)         E [K, d] is trained
    indices_i = argmin_k ||u_i - e_k||^2                                       the code of the largest cosine
    z_q       = e[indices]
    loss      = commitment_weight mean((u - sg z_q)^2) + codebook_weight mean((z_q - sg u)^2)

z_q has unit length, so a decoder learns from directions. The gradient of z_q reaches z through the normalisation, as in
LlamaGen's code: a feature is turned, not stretched. ViT-VQGAN's passes it around, to z as it is. LlamaGen has d = 8.
"""

from typing import ClassVar

import torch
from torch import Tensor

from vqdm_cuda.ops.nearest_code import nearest_code
from vqdm_cuda.quantizers.codebook import CodebookQuantizer
from vqdm_cuda.quantizers.layout import working_dtype

__all__ = ["NormalizedQuantizer"]

# Vectors shorter than this are divided by it, and so stay shorter than 1: zero stays zero.
_SHORTEST = 1e-12


class NormalizedQuantizer(CodebookQuantizer):
    """Nearest-code quantizer of unit vectors; `codebook` holds the unit codes.

    Args:
        init_std, init_bound: of the table that is normalised. Its lengths leave the codes as they are, but a step of an
            optimizer turns a long row less than a short one; those of the default are near 1, LlamaGen's start.
        Others as in `VectorQuantizer`.
    """

    kind: ClassVar[str] = "normalized"

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

    @property
    def unfit_for_residuals(self) -> str | None:
        return "with codes of any length, since unit codes cannot shrink to what is left over, got NormalizedQuantizer"

    @property
    def codebook(self) -> Tensor:
        return _unit(self.weight.to(working_dtype(self.weight.dtype)))

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return super().quantize(_unit(rows))

    def assign(self, rows: Tensor) -> Tensor:
        return super().assign(_unit(rows))

    def fit_terms(self, z: Tensor, z_q: Tensor) -> dict[str, Tensor]:
        return super().fit_terms(_unit(z), z_q)

    def pass_gradient(self, z: Tensor, z_q: Tensor) -> Tensor:
        return super().pass_gradient(_unit(z), z_q)


def _unit(
    vectors: Tensor,  # [N, d] float32 or float64
) -> Tensor:  # [N, d]
    """Each vector divided by its length; differentiable.

    The bits of a vector's length hang on that vector alone: `nearest_code` defines the order of its sum, where torch
    may add in another order by shape, strides and number of threads.
    """
    origin = torch.zeros(1, vectors.shape[-1], dtype=torch.float64, device=vectors.device)
    squared_length, _ = nearest_code(vectors, origin)
    length = squared_length.clamp_min(_SHORTEST**2).sqrt()  # clamped first: the slope of a root at 0 is infinite
    return vectors / length.to(vectors.dtype)[..., None]
