"""Sinkhorn quantizer: in training, a batch's features are matched to the codes as a whole (OptVQ, arXiv 2412.15195).

    e          = E W^T + b                                   the effective codebook: codes through a linear map
    indices    = sinkhorn(z, e)                              in training: every code gets its share of the batch
    indices_i  = argmin_k ||z_i - e_k||^2                    in eval() and encode(): of each vector alone
    loss       = commitment_weight D(z, sg e[indices]) + codebook_weight D(sg z, e[indices])

    D  l2  mean of (z - e[indices])^2      l1  mean of |z - e[indices]|      over all N d numbers
       ce  mean over i of the cross entropy of -||z_i - e_k|| over the codes k against indices_i (cross_entropy.py)

sg stops the gradient. Codes and map both learn, from the codebook term. docs/optvq.md holds the published constants.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_cuda.distributed import shared_seed
from vqdm_cuda.ops.sinkhorn import check_options, sinkhorn
from vqdm_cuda.quantizers.cross_entropy import distance_cross_entropy
from vqdm_cuda.quantizers.layout import working_dtype
from vqdm_cuda.quantizers.linear_map import make_identity, mapped, new_linear_map, reset_linear_map
from vqdm_cuda.quantizers.lookup import lookup
from vqdm_cuda.quantizers.options import check_bool
from vqdm_cuda.quantizers.vector import VectorQuantizer

__all__ = ["SinkhornQuantizer"]

LOSS_FORMS = ("l2", "l1", "ce")


class SinkhornQuantizer(VectorQuantizer):
    """Quantizer whose training assigns the batch's features to codes by entropic optimal transport.

    The default weights are OptVQ's order, in which beta = 0.25 multiplies the codebook term; the usual order of VQ-VAE
    is commitment_weight=0.25, codebook_weight=1.

    Args:
        eps, num_iters, cost, normalize, floor, stats: as in `sinkhorn`.
        sample: in training, draw each index from its row of the transport plan, where the default, and evaluation, take
            the largest entry. The seed comes from torch's default generator on the CPU (with a `group`, from the first
            rank's), which breaks the graph of a compiled module.
        sinkhorn_at_evaluation: assign by Sinkhorn in `eval()` too, as published. The tokens of a vector then depend on
            the other vectors of the batch; `encode` still gives the nearest codes, which may be others.
        linear_map: train a linear map with bias on the codes. Its weight is drawn from N(0, 1/d).
        loss_form: "l2", "l1" or "ce". Each of the two terms has the form's whole value, so with ce and both weights 1
            the gradient is that of the published loss and the value twice it.
        start_step: in that many training passes first, z_q is z itself; indices and loss are as ever. The passes are
            counted in `num_passes`, a buffer that is saved. (Activation checkpointing runs, and counts, a pass twice.)
        init_std, init_bound: of the codes before the map; where neither is given, N(0, 1).
        Others as in `VectorQuantizer`, which also has freeze_codebook.
    """

    kind: ClassVar[str] = "sinkhorn"

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        eps: float = 0.1,
        num_iters: int = 5,
        cost: str = "euclidean",
        normalize: str | None = "std",
        floor: float = 0.0,
        stats: str = "global",
        sample: bool = False,
        sinkhorn_at_evaluation: bool = False,
        linear_map: bool = True,
        loss_form: str = "l2",
        start_step: int = 0,
        commitment_weight: float = 1.0,
        codebook_weight: float = 0.25,
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
            init_std=1.0 if init_std is None and init_bound is None else init_std,
            init_bound=init_bound,
        )
        name = type(self).__name__
        check_options(name, eps, num_iters, cost, normalize, floor, stats)
        if loss_form not in LOSS_FORMS:
            raise ValueError(f"{name}: expected loss_form to be one of {LOSS_FORMS}, got {loss_form!r}")
        check_bool(name, sample=sample, sinkhorn_at_evaluation=sinkhorn_at_evaluation, linear_map=linear_map)
        if not isinstance(start_step, int) or isinstance(start_step, bool):
            raise TypeError(f"{name}: expected start_step to be an int, got {type(start_step).__name__}")
        if not 0 <= start_step < 2**62:
            raise ValueError(f"{name}: expected start_step from 0 to 2^62, got {start_step}")
        self.eps = eps
        self.num_iters = num_iters
        self.cost = cost
        self.normalize = normalize
        self.floor = floor
        self.stats = stats
        self.sample = sample
        self.sinkhorn_at_evaluation = sinkhorn_at_evaluation
        self.loss_form = loss_form
        self.start_step = start_step
        self.linear_map = new_linear_map(code_dim, code_dim) if linear_map else None
        self.num_passes: Tensor | None
        self.register_buffer("num_passes", torch.zeros((), dtype=torch.int64) if start_step else None)

    def reset_parameters(self) -> None:
        """Draws the codes and the map anew."""
        super().reset_parameters()
        if self.linear_map is not None:
            reset_linear_map(self.linear_map)

    def start_at(self, codes: Tensor) -> None:
        super().start_at(codes)
        if self.linear_map is not None:
            make_identity(self.linear_map)

    @property
    def codebook(self) -> Tensor:
        return self.weight if self.linear_map is None else mapped(self.weight, self.linear_map)

    @property
    def config(self) -> dict[str, Any]:
        config = super().config | {
            "eps": self.eps,
            "num_iters": self.num_iters,
            "cost": self.cost,
            "normalize": self.normalize,
            "floor": self.floor,
            "stats": self.stats,
            "sample": self.sample,
            "sinkhorn_at_evaluation": self.sinkhorn_at_evaluation,
            "linear_map": self.linear_map is not None,
            "loss_form": self.loss_form,
            "start_step": self.start_step,
        }
        del config["freeze_codebook"]
        return config

    @property
    def unfit_for_residuals(self) -> str | None:
        if self.loss_form == "ce":
            return "loss_form 'l2' or 'l1', which compare sums of codes with features, got 'ce'"
        if self.sinkhorn_at_evaluation:
            return "without sinkhorn_at_evaluation, since evaluation takes every vector alone, got it"
        if self.start_step:
            return f"start_step 0, since passes over residuals are not counted, got {self.start_step}"
        return None

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [*super().codebook_parameters(), *(() if self.linear_map is None else self.linear_map.parameters())]

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        e = self.codebook
        e = e.to(working_dtype(e.dtype))
        indices = self.assign_batch(rows.detach(), e.detach())
        codes = lookup(e, indices).to(rows.dtype)
        if self.loss_form == "ce":
            terms = self._terms(*distance_cross_entropy(rows, e, indices))
        else:
            terms = self.fit_terms(rows, codes)
        z_q = self.pass_gradient(rows, codes)
        if self.training and self.num_passes is not None:
            z_q = torch.where(self.num_passes < self.start_step, rows, z_q)  # no branch: the host need not wait
            self.num_passes.add_(1)
        return z_q, indices, terms

    @torch.no_grad()
    def assign_batch(
        self,
        rows: Tensor,  # [N, d]
        e: Tensor | None = None,  # [K, d], where the caller has the codebook already
    ) -> Tensor:
        """The indices [N] of the forward pass: by Sinkhorn in training, where every rank of `group` must call."""
        if not (self.training or self.sinkhorn_at_evaluation):
            return self.assign(rows)
        return sinkhorn(
            rows,
            self.codebook if e is None else e,
            eps=self.eps,
            num_iters=self.num_iters,
            cost=self.cost,
            normalize=self.normalize,
            floor=self.floor,
            stats=self.stats,
            seed=shared_seed(self.group) if self.sample and self.training else None,
            group=self.group,
        )[2]

    def fit_terms(self, z: Tensor, z_q: Tensor) -> dict[str, Tensor]:
        if self.loss_form == "l2":
            return super().fit_terms(z, z_q)
        z, z_q = torch.broadcast_tensors(z, z_q)
        per_number = 1 / max(z.numel(), 1)  # no vectors, no loss: not 0/0
        return self._terms(
            per_number * F.l1_loss(z, z_q.detach(), reduction="sum"),
            per_number * F.l1_loss(z_q, z.detach(), reduction="sum"),
        )
