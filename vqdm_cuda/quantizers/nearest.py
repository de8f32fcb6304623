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
from torch.autograd.function import FunctionCtx

from vqdm_cuda.ops.code_sums import code_sums
from vqdm_cuda.ops.nearest_code import nearest_code
from vqdm_cuda.quantizers.lookup import lookup

__all__ = ["nearest_step"]


def nearest_step(
    z: Tensor,  # [N, d] float32 or float64
    e: Tensor,  # [K, d] any floating type
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(z_q [N, d], indices [N] int64, commitment, codebook): floats of z's type, differentiable any number of times.

    Without rows both errors are 0. A row that holds NaN or Inf has index 0, makes both errors NaN, and through the
    codebook's error the gradient of code 0; so do codes none of which is finite. Other rows keep their codes.
    """
    return _NearestStep.apply(z, e)


class _NearestStep(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dist2, indices = nearest_code(z, e)
        error = (dist2.sum(dtype=torch.float64) / max(z.numel(), 1)).to(z.dtype)
        return e.index_select(0, indices).to(z.dtype), indices, error, error.clone()

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        indices = output[1]
        ctx.save_for_backward(*inputs, indices)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx, grad_z_q: Tensor | None, _indices: None, grad_commitment: Tensor | None, grad_codebook: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        z, e, indices = ctx.saved_tensors
        to_z = ctx.needs_input_grad[0] and grad_commitment is not None
        to_e = ctx.needs_input_grad[1] and grad_codebook is not None
        if not to_z and not to_e:
            return grad_z_q, None
        scale = 2 / max(z.numel(), 1)
        codes = lookup(e, indices).to(z.dtype)
        if torch.is_grad_enabled():  # for second derivatives each error holds the other's side fixed
            r_of_z, r_of_e = codes.detach() - z, codes - z.detach()
        else:
            r_of_z = r_of_e = codes.sub_(z)
        grad_z, grad_e = grad_z_q, None
        if to_z:
            pull = (scale * grad_commitment) * r_of_z
            grad_z = -pull if grad_z_q is None else grad_z_q - pull
        if to_e:
            grad_e = ((scale * grad_codebook) * code_sums(r_of_e, indices, e.shape[0])[0]).to(e.dtype)
        return grad_z, grad_e
