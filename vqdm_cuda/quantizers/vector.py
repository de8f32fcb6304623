"""Vector quantizer: nearest code of a trained codebook (VQ-VAE, van den Oord et al. 2017; VQGAN, Esser et al. 2021)."""

from typing import Any, ClassVar

from vqdm_cuda.quantizers.codebook import CodebookQuantizer

__all__ = ["VectorQuantizer"]


class VectorQuantizer(CodebookQuantizer):
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
        super().__init__(
            codebook_size,
            code_dim,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            gradient=gradient,
            init_std=init_std,
            init_bound=init_bound,
            trained=not freeze_codebook,
        )
        if freeze_codebook and codebook_weight != 0:
            raise ValueError(
                f"{type(self).__name__}: expected codebook_weight 0 with freeze_codebook, since frozen codes follow "
                f"no term, got {codebook_weight}"
            )
        self.freeze_codebook = freeze_codebook

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"freeze_codebook": self.freeze_codebook}
