"""One training step of a codebook that is searched: codes, indices and both errors from one search.

    indices[i] = argmin_k ||z_i - e_k||^2        z_q[i] = e[indices[i]]
    error      = mean over all N d numbers of (z - z_q)^2

The search already knows every ||z_i - e_k||^2, rounded once, so their sum is the error and no pass over z is needed.
The error comes twice, as the two sides of the vector quantizer's loss: `commitment` has a gradient to z alone,
`codebook` to e alone, and z_q passes its gradient straight to z. With r = z_q - z, in closed form:

    dz   = dz_q - d_commitment 2 r / (N d)
    de_k = d_codebook 2 / (N d) sum_{i : indices_i = k} r_i            (code_sums: the same bits on every run)

The sum is over differences, not n_k e_k - sum z_i, which would cancel where features and codes lie far from zero.
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._once import only_once
from vqdm_cuda.ops.code_sums import code_sums
from vqdm_cuda.ops.nearest_code import nearest_code

__all__ = ["nearest_step"]


def nearest_step(
    z: Tensor,  # [N, d] float32 or float64
    e: Tensor,  # [K, d] any floating type
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(z_q [N, d], indices [N] int64, commitment, codebook): floats of z's type, differentiable once.

    Without rows both errors are 0. A row that holds NaN or Inf has index 0 and makes both errors NaN, as do codes none
    of which is finite; the other rows keep their codes and their gradients.
    """
    return _NearestStep.apply(z, e)


class _NearestStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dist2, indices = nearest_code(z, e)
        error = (dist2.sum(dtype=torch.float64) / max(z.numel(), 1)).to(z.dtype)
        ctx.save_for_backward(z, e, indices)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return e.index_select(0, indices).to(z.dtype), indices, error, error.clone()

    @staticmethod
    def backward(
        ctx, grad_z_q: Tensor | None, _indices: None, grad_commitment: Tensor | None, grad_codebook: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if grad_commitment is None and grad_codebook is None:
            return grad_z_q, None
        z, e, indices = ctx.saved_tensors
        to_z, to_e = ctx.needs_input_grad
        scale = 2 / max(z.numel(), 1)
        grad_z, grad_e = grad_z_q, None
        with torch.no_grad():
            r = e.index_select(0, indices).to(z.dtype).sub_(z)
            if to_e and grad_codebook is not None:
                sums, _ = code_sums(r, indices, e.shape[0])
                grad_e = sums.mul_(scale * grad_codebook).to(e.dtype)
            if to_z and grad_commitment is not None:
                r.mul_(-scale * grad_commitment)
                grad_z = r if grad_z_q is None else r.add_(grad_z_q)
        depends_on = [t for t in (grad_z_q, grad_commitment, grad_codebook, z, e) if t is not None]
        once_z, once_e = (
            None if gradient is None else only_once("VectorQuantizer", gradient, *depends_on)
            for gradient in (grad_z, grad_e)
        )
        return once_z, once_e
