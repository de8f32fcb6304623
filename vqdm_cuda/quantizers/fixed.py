"""Quantizers whose codes are fixed: given by arithmetic on the index, they need neither a table nor a search."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from vqdm_cuda.quantizers.layout import working_dtype
from vqdm_cuda.quantizers.per_vector import PerVectorQuantizer

__all__ = ["FixedQuantizer"]


class FixedQuantizer(PerVectorQuantizer):
    """A quantizer without parameters. `constants`, which the arguments determine, are a buffer that is not saved."""

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__(codebook_size, code_dim)
        self.constants: Tensor
        self.register_buffer("constants", self._constants().float(), persistent=False)

    @abstractmethod
    def _constants(self) -> Tensor:
        """What the arithmetic needs, on the CPU in float64."""

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        # A cast to half precision must not round the constants, nor to_empty() lose them.
        self.constants = self._constants().to(self.constants.device, working_dtype(self.constants.dtype))
        return self

    @property
    def unfit_for_residuals(self) -> str | None:
        return f"with codes that can take the scale of what is left over, got {type(self).__name__}, whose are fixed"

    @property
    def codebook(self) -> Tensor:
        """The codes [K, d], computed anew on each call."""
        return self.lookup(torch.arange(self.codebook_size, device=self.constants.device))

    def codebook_parameters(self) -> list[nn.Parameter]:
        return []
