"""The interface of all quantizers.

A quantizer replaces vectors of d numbers by codes of a codebook e [K, d]; the indices of the codes are the tokens.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from vqdm_cuda.quantizers.options import check_count

__all__ = ["Quantized", "Quantizer", "detached", "total"]


class Quantized(NamedTuple):
    """What a quantizer returns, in the order of vector-quantize-pytorch."""

    z_q: Tensor  # shape and dtype of z
    indices: Any  # int64 [B, h, w], [B, n] or [N]; of several heads with a dimension more, of several scales a list
    loss: Tensor  # scalar, ready to add to the model's loss


class Quantizer(nn.Module, ABC):
    """Replaces each vector of d numbers by one of K codes.

    Called with z [B, d, h, w] (channels first) or [..., d] with 2 or 3 dimensions (channels last), it returns
    `Quantized(z_q, indices, loss)`; with `return_terms=True` also a dict of the weighted terms of the loss, detached
    float32 scalars that add up to it. z_q has z's shape and dtype. All arithmetic runs in float32 (float64 for float64
    z) whatever the autocast.

    `group`, a process group or None, names the ranks whose features together make the statistics of a loss; copies of
    the module (averaged weights) start without one.

    Raises:
        TypeError: z is not floating point.
        ValueError: z has neither layout.
    """

    kind: ClassVar[str]  # the word for this class in a saved configuration
    group: ProcessGroup | None = None

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        check_count(type(self).__name__, codebook_size=codebook_size, code_dim=code_dim)
        self.codebook_size = codebook_size
        self.code_dim = code_dim

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """The effective codebook [K, d]."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data, with this class's `kind`."""

    @property
    def latent_size(self) -> tuple[int, int] | None:
        """The only (h, w) this quantizer takes, or None where any will do."""
        return None

    @abstractmethod
    def codebook_parameters(self) -> list[nn.Parameter]:
        """The parameters that form the codebook, for a learning rate of their own; none where it is frozen."""

    def parameter_groups(
        self,
        *,
        lr: float,  # of what is not the codebook, such as the convolutions between scales
        codebook_lr: float,
    ) -> list[dict[str, Any]]:
        """The quantizer's parameters as groups for an optimizer of torch, the codebook with a learning rate of its own.

        A group that would be empty is left out, so a quantizer that learns nothing gives none.

        Example:
            >>> groups = quantizer.parameter_groups(lr=1e-3, codebook_lr=1e-2)
            >>> optimizer = torch.optim.Adam([{"params": encoder.parameters(), "lr": 1e-4}, *groups])
        """
        codebook = self.codebook_parameters()
        ours = {id(parameter) for parameter in codebook}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in ours]
        groups = [{"params": rest, "lr": lr}, {"params": codebook, "lr": codebook_lr}]
        return [group for group in groups if group["params"]]

    @abstractmethod
    def forward(
        self,
        z: Tensor,  # [B, d, h, w] or [..., d]
        return_terms: bool = False,
    ) -> Any:
        """`Quantized`, or the pair of it and the terms of the loss."""

    @abstractmethod
    def encode(
        self,
        z: Tensor,  # [B, d, h, w] or [..., d]
    ) -> Any:
        """The indices alone, without a graph."""

    @abstractmethod
    def decode(self, indices: Any) -> Tensor:
        """z_q of the indices, in float32 (float64 for a float64 codebook), equal to the forward pass's."""

    def extra_repr(self) -> str:
        return f"codebook_size={self.codebook_size}, code_dim={self.code_dim}"

    def __getstate__(self) -> dict[str, Any]:
        # A process group can be neither copied nor saved.
        return {name: value for name, value in self.__dict__.items() if name != "group"}


def total(terms: dict[str, Tensor]) -> Tensor:
    """The loss: the sum of the weighted terms."""
    return torch.stack(list(terms.values())).sum()


def detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms as they are reported: float32 scalars without a graph."""
    return {name: term.detach().float() for name, term in terms.items()}
