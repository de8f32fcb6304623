"""Wasserstein quantizer: a codebook whose distribution is matched to that of the features.

    loss = commitment and codebook terms of the vector quantizer + wasserstein_weight L_W(z, e)

L_W is the Wasserstein distance between Gaussians with the means and covariances of the features and of the codes
(Wasserstein VQ; see vqdm_cuda/losses.py for the formula). Codes that no feature selects receive gradient from L_W
alone, which is what keeps the whole codebook in use.
"""

from typing import Any, ClassVar

from torch import Tensor

from vqdm_cuda.losses import check_wasserstein_options, wasserstein_loss
from vqdm_cuda.quantizers.layout import working_dtype
from vqdm_cuda.quantizers.vector import VectorQuantizer

__all__ = ["WassersteinQuantizer"]


class WassersteinQuantizer(VectorQuantizer):
    """Vector quantizer with a distribution-matching loss.

    Args:
        wasserstein_weight: weight of L_W; 0 leaves a plain vector quantizer.
        grad_to: "codebook" moves the codes towards the features, "features" the features towards the codes, "both".
        squared, target, unbiased, normalize, cov_scale: as in `wasserstein_loss`.
        Others as in `VectorQuantizer`.
    """

    kind: ClassVar[str] = "wasserstein"

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        wasserstein_weight: float = 0.5,
        grad_to: str = "codebook",
        squared: bool = False,
        target: str = "features",
        unbiased: bool = False,
        normalize: str | None = None,
        cov_scale: float = 1.0,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        gradient: str = "straight_through",
        init_std: float | None = None,
    ) -> None:
        super().__init__(
            codebook_size,
            code_dim,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            gradient=gradient,
            init_std=init_std,
        )
        check_wasserstein_options("WassersteinQuantizer", grad_to, target, normalize, cov_scale)
        if not 0 <= wasserstein_weight < float("inf"):
            raise ValueError(
                "WassersteinQuantizer: expected wasserstein_weight to be finite and not negative, "
                f"got {wasserstein_weight}"
            )
        self.wasserstein_weight = wasserstein_weight
        self.grad_to = grad_to
        self.squared = squared
        self.target = target
        self.unbiased = unbiased
        self.normalize = normalize
        self.cov_scale = cov_scale

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {
            "wasserstein_weight": self.wasserstein_weight,
            "grad_to": self.grad_to,
            "squared": self.squared,
            "target": self.target,
            "unbiased": self.unbiased,
            "normalize": self.normalize,
            "cov_scale": self.cov_scale,
        }

    def matching_terms(self, rows: Tensor) -> dict[str, Tensor]:
        e = self.codebook
        if self.wasserstein_weight == 0:
            return {}
        # Too few rows for a covariance match nothing: not 0/0. (Those of other ranks count too; there, all must call.)
        if self.group is None and rows.shape[0] < (2 if self.unbiased else 1):
            return {"wasserstein": 0.0 * e.sum()}
        loss = wasserstein_loss(
            rows,
            e.to(working_dtype(e.dtype)),
            squared=self.squared,
            grad_to=self.grad_to,
            target=self.target,
            unbiased=self.unbiased,
            normalize=self.normalize,
            cov_scale=self.cov_scale,
            group=self.group,
        )
        return {"wasserstein": self.wasserstein_weight * loss}
