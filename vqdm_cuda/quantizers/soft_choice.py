"""A choice among all codes with the gradient of its softmax, and the entropies of that softmax, matrix-free.

    l_ik = z_i . e_k        p_i = softmax of l_i over the codes        p'_i = softmax of l_i / temperature

The choice is e[indices_i] in value and (onehot_i + p_i - sg p_i) e in gradient, where sg stops it: the logits receive
one too, and with them all codes. The entropies come as sums over the rows, from which those of all ranks follow:
H = sum_i H(p'_i) and s_k = sum_i p'_ik. With b_ik = dz_q_i . e_k and a_ik = ds_k - dH log p'_ik in closed form

    dl_ik = p_ik (b_ik - sum_j p_ij b_ij) + p'_ik (a_ik - sum_j p'_ij a_ij) / temperature
    dz_i  = sum_k dl_ik e_k        de_k = sum_i dl_ik z_i        dcodes_i = dz_q_i

The [N, K] logits are never stored: each pass computes them anew, a block of rows after the other, in z's type. That is
wide enough: with x_ik = (l_ik - max l_i) / temperature and S_i = sum_k exp x_ik, H(p'_i) = log S_i - sum_k p'_ik x_ik
adds what is not negative.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["soft_choice"]

# Numbers of one block [rows, K]: 2 MiB in float32, which a core's cache holds, or what fills a GPU. Where K is large,
# more: a product of fewer rows than these would wait for its pass over the codes.
_BLOCK_ON_CPU = 1 << 19
_BLOCK = 1 << 24
_LEAST_ROWS = 32

# Logits so far below a row's largest count as this far below: e^-60 is nothing beside 1 in float64 even K = 2^30 times,
# and its products are normal numbers still. Smaller ones take processors many times longer.
_LOWEST = -60.0


def soft_choice(
    z: Tensor,  # [N, d] float32 or float64
    e: Tensor,  # [K, d] of z's type
    codes: Tensor,  # [N, d] of z's type: e[indices], differentiable in e
    temperature: float | None,  # of the entropies; None leaves them out
) -> tuple[Tensor, Tensor, Tensor]:
    """(z_q [N, d] of z's type, H [] and s [K] in float64, 0 where left out); differentiable once.

    A row that holds NaN or Inf makes H and s NaN, and with them every gradient that they take part in.
    """
    return _SoftChoice.apply(z, e, codes, temperature)


class _SoftChoice(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, e: Tensor, codes: Tensor, temperature: float | None) -> tuple[Tensor, Tensor, Tensor]:
        entropy = torch.zeros((), dtype=torch.float64, device=z.device)
        sums = torch.zeros(e.shape[0], dtype=torch.float64, device=z.device)
        if temperature is not None:
            for (rows,) in _blocks(e.shape[0], z):
                x = _below_largest(rows @ e.T).mul_(1 / temperature).clamp_(min=_LOWEST)
                p, S = _softmax(x)
                entropy += (S.log() - (p * x).sum(1, keepdim=True)).sum(dtype=torch.float64)
                sums += p.sum(0)
        return codes.clone(), entropy, sums

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        z, e, _, ctx.temperature = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(z, e)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z_q: Tensor, grad_entropy: Tensor, grad_sums: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        z, e = ctx.saved_tensors
        grad_z, grad_e = torch.empty_like(z), torch.zeros_like(e)
        # A caller's autocast, which may hold here too, would narrow the products.
        with torch.autocast(z.device.type, enabled=False):
            for rows, pull, out in _blocks(e.shape[0], z, grad_z_q, grad_z):
                x = _below_largest(rows @ e.T)
                grad = _soft_pull(x, pull @ e.T)
                if ctx.temperature is not None:
                    grad += _entropy_pull(x, ctx.temperature, grad_entropy.to(z.dtype), grad_sums.to(z.dtype))
                torch.mm(grad, e, out=out)
                grad_e.addmm_(grad.T, rows)
        return grad_z, grad_e, grad_z_q, None


def _blocks(K: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each tensor [N, d], a block after the other."""
    if tensors[0].shape[0] == 0:
        return iter(())
    numbers = _BLOCK_ON_CPU if tensors[0].device.type == "cpu" else _BLOCK
    rows = max(_LEAST_ROWS, numbers // K)
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _below_largest(logits: Tensor) -> Tensor:
    """The logits [n, K], changed, less their largest of each row."""
    return logits.sub_(logits.amax(1, keepdim=True))


def _softmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """(softmax of x [n, K], whose largest is 0 and lowest _LOWEST, and its denominator [n, 1])."""
    p = x.exp()
    S = p.sum(1, keepdim=True)
    return p.mul_(1 / S), S


def _through_softmax(p: Tensor, grad: Tensor) -> Tensor:
    """The gradient [n, K] of the logits, p (grad - sum p grad), from that of p, `grad`, which is changed."""
    return grad.sub_((p * grad).sum(1, keepdim=True)).mul_(p)


def _soft_pull(x: Tensor, grad: Tensor) -> Tensor:
    return _through_softmax(_softmax(x.clamp(min=_LOWEST))[0], grad)


def _entropy_pull(x: Tensor, temperature: float, grad_entropy: Tensor, grad_sums: Tensor) -> Tensor:
    """x is changed. log p' = x / temperature less a constant of the row, which goes through the softmax as nothing."""
    x.mul_(1 / temperature).clamp_(min=_LOWEST)
    p, _ = _softmax(x)
    return _through_softmax(p, torch.addcmul(grad_sums, x, -grad_entropy)).mul_(1 / temperature)
