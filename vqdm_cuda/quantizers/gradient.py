"""How the gradient passes the quantisation: the value is z_q, the gradient with respect to z is chosen.

    straight_through   dz_q/dz = I                                        (VQ-VAE, van den Oord et al. 2017)
    rotation           dz_q/dz = (|q| / |z|) R, R rotates z onto q        (rotation trick, Fifty et al. 2024)

with R = I - 2 w w^T + 2 q' z'^T for the unit vectors z' = z/|z|, q' = q/|q| and w = (z' + q') / |z' + q'|; R and the
ratio are constants of the gradient. Both give z_q to the bit, so that decoding the indices reproduces the forward pass.
"""

from torch import Tensor

__all__ = ["GRADIENTS", "pass_gradient"]

GRADIENTS = ("straight_through", "rotation")

# Vectors shorter than this count as this long, which bounds the ratio |q| / |z|.
_SHORTEST = 1e-6


def pass_gradient(
    z: Tensor,  # [N, d]
    z_q: Tensor,  # [N, d]
    gradient: str,  # one of GRADIENTS
) -> Tensor:
    """z_q [N, d] as a value, with the chosen gradient to z and none to z_q."""
    carrier = z if gradient == "straight_through" else _rotated(z, z_q.detach())
    # carrier - carrier is exactly zero, so the value stays z_q; z + (z_q - z) would round.
    return z_q.detach() + (carrier - carrier.detach())


def _rotated(
    z: Tensor,  # [N, d]
    q: Tensor,  # [N, d] constant
) -> Tensor:
    """(|q| / |z|) R z in O(N d): R is never formed."""
    length_z = z.detach().norm(dim=-1, keepdim=True).clamp_min(_SHORTEST)
    length_q = q.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST)
    unit_z, unit_q = z.detach() / length_z, q / length_q
    w = unit_z + unit_q
    w = w / w.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST)
    along_w = (z * w).sum(dim=-1, keepdim=True)
    along_z = (z * unit_z).sum(dim=-1, keepdim=True)
    return (length_q / length_z) * (z - 2 * along_w * w + 2 * along_z * unit_q)
