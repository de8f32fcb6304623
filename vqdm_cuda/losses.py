"""Losses that match the distribution of the codebook to that of the features, both taken as Gaussian.

    L_W = sqrt(W2^2 + tau)                                             Wasserstein VQ, section 3.1 (W2: its Lemma 3)

Shapes: N features, K codes, d dimensions. Moments are those of `moments`; all else is in float64 and rounded once.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vqdm_cuda.matching import Gaussians, squared_w2_of_rows
from vqdm_cuda.ops._checks import check_floating, result_dtype
from vqdm_cuda.ops.gaussian_w2 import check_gaussians, gaussian_w2
from vqdm_cuda.ops.moments import moments_float64
from vqdm_cuda.ops.sqrtm import root_eigen

__all__ = ["rate_distortion_gaussian", "wasserstein_loss"]

TARGETS = ("features", "rate_distortion")


def wasserstein_loss(
    z: Tensor,  # [N, d] features
    e: Tensor,  # [K, d] codebook
    *,
    squared: bool = False,
    grad_to: str = "both",
    target: str = "features",
    unbiased: bool = False,
    normalize: str | None = None,
    cov_scale: float = 1.0,
    tau: float = 1e-10,
    group: ProcessGroup | None = None,
) -> Tensor:  # scalar
    """The paper's L_W: the Wasserstein distance between the Gaussians of the features and of the codebook.

    Args:
        squared: return W2^2, without tau, instead of sqrt(W2^2 + tau).
        grad_to: "codebook", "features" or "both" receive the gradient.
        target: what the codebook should look like. "features": their own Gaussian, as in the paper.
            "rate_distortion": the reproduction law of `rate_distortion_gaussian` at K codes, a constant of this step,
            so that the features receive no gradient; refused with grad_to="features".
        unbiased: covariances by N - 1 and K - 1, as in the published code.
        normalize: divide both sets by the largest standard deviation over the dimensions of the "features" or of the
            "codebook", taken as a constant; the published generations differ in which.
        cov_scale: factor on the covariance of the features (0.25 in the paper's multi-scale release).
        tau: bounds the gradient of the root where the two Gaussians agree; with 0 it is NaN there.
        group: statistics of the features of all its ranks together, as in `moments`. The codebook is taken to be the
            same on all of them. Where features receive gradient, every rank calls backward, and either every rank's
            z or every rank's e requires a gradient.

    Returns:
        a scalar, float32 (float64 where an input is float64). NaN for no features, or one and unbiased.

    Raises:
        ValueError: shapes that do not fit, different devices, an option outside its set, a single code and unbiased.
        TypeError: z or e not a floating tensor.

    Example:
        >>> wasserstein_loss(torch.zeros(8, 2), torch.ones(4, 2), squared=True)
        tensor(2.)
    """
    _check_wasserstein(z, e, grad_to, target, unbiased, normalize, cov_scale, tau)
    if grad_to == "codebook" or target == "rate_distortion":
        z = z.detach()
    if grad_to == "features":
        e = e.detach()
    prepare = partial(_prepare, normalize=normalize, cov_scale=cov_scale, target=target, codebook_size=e.shape[0])
    to_features = grad_to != "codebook" and target != "rate_distortion"
    w2 = squared_w2_of_rows(z, e, prepare, unbiased=unbiased, group=group, to_features=to_features)
    return _form(w2, squared, tau).to(result_dtype(z, e))


def wasserstein_to_gaussian(
    z: Tensor,  # [N, d] features
    std: float,
    *,
    squared: bool = False,
    unbiased: bool = False,
    cov_scale: float = 1.0,
    tau: float = 1e-10,
    group: ProcessGroup | None = None,
) -> Tensor:  # scalar
    """L_W between the features and the fixed Gaussian N(0, std^2 I); options, type and NaN as in `wasserstein_loss`."""
    mean, cov = moments_float64(z, unbiased=unbiased, group=group)
    eye = torch.eye(z.shape[1], dtype=cov.dtype, device=cov.device)
    w2 = gaussian_w2(mean, cov_scale * cov, torch.zeros_like(mean), std**2 * eye)
    return _form(w2, squared, tau).to(result_dtype(z))


def _form(w2: Tensor, squared: bool, tau: float) -> Tensor:
    return w2 if squared else (w2 + tau).sqrt()


def _prepare(
    given: Gaussians, *, normalize: str | None, cov_scale: float, target: str, codebook_size: int
) -> Gaussians:
    """What `wasserstein_loss` compares, of the moments of features and codes."""
    mean1, cov1, mean2, cov2, *_ = given
    if normalize is None:
        prepared = Gaussians(mean1, cov1 if cov_scale == 1 else cov_scale * cov1, mean2, cov2, 1.0, cov_scale, 1.0)
    else:
        variance = (cov1 if normalize == "features" else cov2).diagonal().max()
        inverse = 1 / torch.where(variance > 0, variance, 1.0)  # a constant set has no scale
        root, scaled = inverse.sqrt(), cov_scale * inverse
        prepared = Gaussians(mean1 * root, cov1 * scaled, mean2 * root, cov2 * inverse, root, scaled, inverse)
    if target == "rate_distortion":
        mean, cov = rate_distortion_gaussian(prepared.mean1, prepared.cov1, codebook_size)
        prepared = prepared._replace(mean1=mean, cov1=cov)
    return prepared


def _check_wasserstein(
    z: Tensor,
    e: Tensor,
    grad_to: str,
    target: str,
    unbiased: bool,
    normalize: str | None,
    cov_scale: float,
    tau: float,
) -> None:
    check_floating("wasserstein_loss", z=z, e=e)
    if z.dim() != 2 or e.dim() != 2 or z.shape[1] != e.shape[1] or e.shape[0] < 1 or e.shape[1] < 1:
        raise ValueError(
            "wasserstein_loss: expected z [N, d] and e [K, d] with equal d >= 1 and K >= 1, "
            f"got {list(z.shape)} and {list(e.shape)}"
        )
    if unbiased and e.shape[0] < 2:
        raise ValueError("wasserstein_loss: expected e [K, d] with K >= 2 where unbiased, got K = 1")
    check_wasserstein_options("wasserstein_loss", TARGETS, grad_to, target, normalize, cov_scale, tau)


def check_wasserstein_options(
    function: str,
    targets: tuple[str, ...],
    grad_to: str,
    target: str,
    normalize: str | None,
    cov_scale: float,
    tau: float,
) -> None:
    """Raise ValueError for an option outside its set; `targets` is that of `target`."""
    options: tuple[tuple[str, str | None, tuple[str | None, ...]], ...] = (
        ("grad_to", grad_to, ("codebook", "features", "both")),
        ("target", target, targets),
        ("normalize", normalize, (None, "features", "codebook")),
    )
    for name, value, allowed in options:
        if value not in allowed:
            raise ValueError(f"{function}: expected {name} to be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if target == "rate_distortion" and grad_to == "features":
        raise ValueError(
            f"{function}: expected grad_to 'codebook' or 'both' with target 'rate_distortion', "
            "which is a constant for the features, got 'features'"
        )
    if not 0 < cov_scale < float("inf"):
        raise ValueError(f"{function}: expected cov_scale > 0, got {cov_scale}")
    if not 0 <= tau < float("inf"):
        raise ValueError(f"{function}: expected tau >= 0, got {tau}")


@torch.no_grad()
def rate_distortion_gaussian(
    mean: Tensor,  # [..., d]
    cov: Tensor,  # [..., d, d]
    codebook_size: int,  # K
) -> tuple[Tensor, Tensor]:  # mean [..., d], cov [..., d, d]
    """The reproduction law of rate-distortion theory for a Gaussian at log2 K bits: what K codes should look like.

    Reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3): with eigenvalues l_i of cov, theta
    solves sum_i max(0, 1/2 log2(l_i / theta)) = log2 K, and the law is N(mean, V diag(max(0, l_i - theta)) V^T).
    Constants: no gradient flows. An item that holds NaN or Inf gives NaN.

    Returns:
        (mean, cov), float32 (float64 where an input is float64).

    Raises:
        ValueError: shapes that do not fit, different devices, codebook_size < 1.
        TypeError: mean or cov not a floating tensor, codebook_size not an int.

    Example:
        >>> rate_distortion_gaussian(torch.zeros(2), torch.eye(2), 16)[1].diagonal()  # 1 - 16^(-2/2)
        tensor([0.9375, 0.9375])
    """
    check_gaussians("rate_distortion_gaussian", mean, cov, mean, cov)
    if not isinstance(codebook_size, int) or isinstance(codebook_size, bool):
        raise TypeError(
            f"rate_distortion_gaussian: expected codebook_size to be an int, got {type(codebook_size).__name__}"
        )
    if codebook_size < 1:
        raise ValueError(f"rate_distortion_gaussian: expected codebook_size >= 1, got {codebook_size}")
    _, roots, V = root_eigen(cov)
    values, order = roots.square().sort(dim=-1, descending=True)
    V = V.gather(-1, order[..., None, :].expand_as(V))

    # The m largest take part where m ln l_m > ln theta_m m = sum_{i <= m} ln l_i - 2 ln K, which holds for a prefix.
    logs = values.log()
    m = torch.arange(1, values.shape[-1] + 1, device=values.device)
    excess = logs.cumsum(-1) - m * logs  # grows with m; NaN at zeros, where the comparison fails
    num_active = (excess < 2 * math.log(codebook_size)).sum(-1, keepdim=True).clamp_min(1)
    log_theta = (logs.cumsum(-1).gather(-1, num_active - 1) - 2 * math.log(codebook_size)) / num_active
    kept = (values - log_theta.exp()).clamp_min(0) * (m <= num_active)
    law = (V * kept[..., None, :]) @ V.mT  # NaN where cov is not finite, as the roots are
    out_dtype = result_dtype(mean, cov)
    return mean.to(out_dtype), law.to(out_dtype)
