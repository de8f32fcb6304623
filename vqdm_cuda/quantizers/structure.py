"""Structures: quantizers that put another one to work, on pieces of vectors, on what is left over, or on both."""

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from vqdm_cuda.quantizers.base import Quantizer
from vqdm_cuda.quantizers.per_vector import PerVectorQuantizer

__all__ = ["Structure"]


class Structure(Quantizer):
    """A quantizer around `inner`, whose codebook, parameters and process group are its own."""

    inner: PerVectorQuantizer

    def __init__(
        self,
        inner: Quantizer,
        why: str,  # it takes only what quantises each vector on its own
        *,
        num_pieces: int = 1,  # for the inner quantizer, that a vector is cut into
    ) -> None:
        if not isinstance(inner, PerVectorQuantizer):
            raise TypeError(
                f"{type(self).__name__}: expected inner to quantise each vector on its own, since {why}, "
                f"got {type(inner).__name__}"
            )
        super().__init__(inner.codebook_size, num_pieces * inner.code_dim)
        self.inner = inner

    def _refuse_unfit_for_residuals(self) -> None:
        if self.inner.unfit_for_residuals is not None:
            raise ValueError(f"{type(self).__name__}: expected inner {self.inner.unfit_for_residuals}")

    @property
    def codebook(self) -> Tensor:
        return self.inner.codebook

    @property
    def group(self) -> ProcessGroup | None:
        return self.inner.group

    @group.setter
    def group(self, group: ProcessGroup | None) -> None:
        self.inner.group = group

    def codebook_parameters(self) -> list[nn.Parameter]:
        return self.inner.codebook_parameters()
