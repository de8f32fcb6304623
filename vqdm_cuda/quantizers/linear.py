"""Linear quantizer: a frozen table behind a trained linear map (SimVQ, Zhu et al. 2024; VQGAN-LC, Zhu et al. 2024).

    e_k = E_k W^T + b                                   E [K, table_dim] is a buffer, W and b learn from the loss
    indices_i = argmin_k ||z_i - e_k||^2
    loss      = commitment_weight mean((z - sg z_q)^2) + codebook_weight mean((z_q - sg z)^2)

The map moves all codes at once, those that no feature selects too. SimVQ's table is drawn from N(0, 1/d) and has d
columns; VQGAN-LC's is given: the k-means of another model's features (`kmeans`, `set_codes`), 768 numbers each.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from vqdm_cuda.quantizers.codebook import CodebookQuantizer
from vqdm_cuda.quantizers.linear_map import make_identity, mapped, new_linear_map, reset_linear_map
from vqdm_cuda.quantizers.options import check_bool, check_count

__all__ = ["LinearQuantizer"]


class LinearQuantizer(CodebookQuantizer):
    """Nearest-code quantizer whose codebook is a trained linear map of a frozen table.

    Args:
        table_dim: numbers of a row of the table; None is d. Another than d is VQGAN-LC's.
        bias: of the map; SimVQ and VQGAN-LC have one, vector-quantize-pytorch's SimVQ has none.
        codebook_weight: weight of the term that draws codes to their features, by the map.
        init_std, init_bound: of the table; where neither is given, N(0, 1/table_dim). The map's weight is drawn from
            N(0, 1/d).
        Others as in `VectorQuantizer`.
    """

    kind: ClassVar[str] = "linear"

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        table_dim: int | None = None,
        bias: bool = True,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        gradient: str = "straight_through",
        init_std: float | None = None,
        init_bound: float | None = None,
    ) -> None:
        name = type(self).__name__
        if table_dim is not None:
            check_count(name, table_dim=table_dim)
        check_bool(name, bias=bias)
        super().__init__(
            codebook_size,
            code_dim,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            gradient=gradient,
            init_std=init_std,
            init_bound=init_bound,
            trained=False,
            table_dim=table_dim,
        )
        self.linear_map = new_linear_map(self.weight.shape[1], code_dim, bias=bias)

    def reset_parameters(self) -> None:
        """Draws the table and the map anew."""
        super().reset_parameters()
        reset_linear_map(self.linear_map)

    @property
    def codebook(self) -> Tensor:
        return mapped(self.weight, self.linear_map)

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"table_dim": self.weight.shape[1], "bias": self.linear_map.bias is not None}

    def codebook_parameters(self) -> list[nn.Parameter]:
        return list(self.linear_map.parameters())

    def start_at(self, codes: Tensor) -> None:
        """Starts from these codes [K, d] behind the identity, where the table has d columns."""
        if self.weight.shape[1] != self.code_dim:
            raise ValueError(
                f"LinearQuantizer.start_at: expected table_dim {self.code_dim}, so that the map can be the identity, "
                f"got {self.weight.shape[1]}"
            )
        self.set_codes(codes)
        make_identity(self.linear_map)
