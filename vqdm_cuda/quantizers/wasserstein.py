"""Wasserstein quantizer: a codebook whose distribution is matched to that of the features.

    loss = commitment and codebook terms of the vector quantizer + wasserstein_weight L_W(z, e)

L_W is the Wasserstein distance between Gaussians with the means and covariances of the features and of the codes
(Wasserstein VQ; see vqdm_cuda/losses.py for the formula). Codes that no feature selects receive gradient from L_W
alone, which is what keeps the whole codebook in use. With a fixed Gaussian as target it is the other way round: codes
are drawn from it once, and the features are pulled to it.

docs/wasserstein.md holds the options of each published generation.
"""

from typing import Any, ClassVar

from torch import Tensor

from vqdm_cuda.losses import TARGETS, check_wasserstein_options, wasserstein_loss, wasserstein_to_gaussian
from vqdm_cuda.quantizers.layout import working_dtype
from vqdm_cuda.quantizers.options import check_not_negative
from vqdm_cuda.quantizers.queue import FeatureQueue
from vqdm_cuda.quantizers.vector import VectorQuantizer

__all__ = ["WassersteinQuantizer"]


class WassersteinQuantizer(VectorQuantizer):
    """Vector quantizer with a distribution-matching loss.

    Args:
        wasserstein_weight: weight of L_W; 0 leaves a plain vector quantizer.
        grad_to: "codebook" moves the codes towards the features, "features" the features towards the codes, "both".
        squared, unbiased, normalize, cov_scale, tau: as in `wasserstein_loss`.
        target: "features" or "rate_distortion", as there, or "gaussian": the features are pulled to
            N(0, target_std^2 I), whatever the codes. That asks for grad_to="features" and for no normalize; codes that
            should have that law are drawn from it, by init_std, and kept by freeze_codebook.
        target_std: standard deviation of that Gaussian.
        queue_size: in training, take the features' statistics from the last so many vectors, this batch's among them,
            instead of from the batch alone (0). Counts the vectors of all ranks of `group` together. Features receive
            the gradient of their own part in the statistics: a batch of N among n vectors about N / n of what it would
            receive alone. In `eval()` the queue is neither read nor written. The queue is saved with the weights.
        Others as in `VectorQuantizer`; freeze_codebook asks for grad_to="features", since frozen codes follow no term.
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
        target_std: float | None = None,
        unbiased: bool = False,
        normalize: str | None = None,
        cov_scale: float = 1.0,
        tau: float = 1e-10,
        queue_size: int = 0,
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
            freeze_codebook=freeze_codebook,
        )
        name = type(self).__name__
        check_wasserstein_options(name, (*TARGETS, "gaussian"), grad_to, target, normalize, cov_scale, tau)
        _check_fixed(name, target, target_std, grad_to, normalize, freeze_codebook)
        _check_queue_size(name, queue_size)
        if unbiased and codebook_size < 2 and target != "gaussian":
            raise ValueError(f"{name}: expected codebook_size >= 2 where unbiased, got {codebook_size}")
        check_not_negative(name, wasserstein_weight=wasserstein_weight)
        self.wasserstein_weight = wasserstein_weight
        self.grad_to = grad_to
        self.squared = squared
        self.target = target
        self.target_std = target_std
        self.unbiased = unbiased
        self.normalize = normalize
        self.cov_scale = cov_scale
        self.tau = tau
        self.queue_size = queue_size
        self.queue = FeatureQueue(queue_size, code_dim) if queue_size else None

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {
            "wasserstein_weight": self.wasserstein_weight,
            "grad_to": self.grad_to,
            "squared": self.squared,
            "target": self.target,
            "target_std": self.target_std,
            "unbiased": self.unbiased,
            "normalize": self.normalize,
            "cov_scale": self.cov_scale,
            "tau": self.tau,
            "queue_size": self.queue_size,
        }

    def matching_terms(self, rows: Tensor) -> dict[str, Tensor]:
        if self.wasserstein_weight == 0:
            return {}
        if self.queue is None or not self.training:
            return self._matched(rows)
        rows, new = self.queue.joined(rows, self.group)
        terms = self._matched(rows)
        self.queue.admit(new)  # last: what fails before leaves the queue as it was
        return terms

    def _matched(self, rows: Tensor) -> dict[str, Tensor]:
        # Too few rows for a covariance match nothing: not 0/0. (Those of other ranks count too; there, all must call,
        # and no rows on any rank are NaN.)
        if self.group is None and rows.shape[0] < (2 if self.unbiased else 1):
            return {"wasserstein": 0.0 * self.codebook.sum()}
        return {"wasserstein": self.wasserstein_weight * self._distance(rows)}

    def _distance(self, rows: Tensor) -> Tensor:
        """L_W between the rows [N, d] and what they are compared with."""
        if self.target_std is not None:
            return wasserstein_to_gaussian(
                rows,
                self.target_std,
                squared=self.squared,
                unbiased=self.unbiased,
                cov_scale=self.cov_scale,
                tau=self.tau,
                group=self.group,
            )
        e = self.codebook
        return wasserstein_loss(
            rows,
            e.to(working_dtype(e.dtype)),
            squared=self.squared,
            grad_to=self.grad_to,
            target=self.target,
            unbiased=self.unbiased,
            normalize=self.normalize,
            cov_scale=self.cov_scale,
            tau=self.tau,
            group=self.group,
        )


def _check_fixed(
    name: str, target: str, target_std: float | None, grad_to: str, normalize: str | None, freeze_codebook: bool
) -> None:
    """What does not move, the target or the codes, leaves the features alone to be moved."""
    if target != "gaussian":
        if target_std is not None:
            raise ValueError(f"{name}: expected target_std only with target 'gaussian', got {target_std}")
    elif target_std is None or not 0 < target_std < float("inf"):
        raise ValueError(f"{name}: expected target_std > 0 with target 'gaussian', got {target_std}")
    elif grad_to != "features":
        raise ValueError(
            f"{name}: expected grad_to 'features' with target 'gaussian', from which codes are drawn, not pulled to it "
            f"(init_std, freeze_codebook), got {grad_to!r}"
        )
    elif normalize is not None:
        raise ValueError(
            f"{name}: expected normalize None with target 'gaussian', whose scale is fixed, got {normalize!r}"
        )
    if freeze_codebook and grad_to != "features":
        raise ValueError(
            f"{name}: expected grad_to 'features' with freeze_codebook, since frozen codes follow no term, "
            f"got {grad_to!r}"
        )


def _check_queue_size(name: str, queue_size: int) -> None:
    if not isinstance(queue_size, int) or isinstance(queue_size, bool):
        raise TypeError(f"{name}: expected queue_size to be an int, got {type(queue_size).__name__}")
    if queue_size != 0 and queue_size < 2:
        raise ValueError(f"{name}: expected queue_size 0 (the batch alone) or at least 2, got {queue_size}")
