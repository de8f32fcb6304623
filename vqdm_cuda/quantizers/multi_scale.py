"""Multi-scale quantizer: token maps of growing size, each of what the smaller ones left over (VAR, Tian et al. 2024).

    f_0 = 0;  for t = 1 .. T with grid (h_t, w_t):
        r_t = area_{h_t, w_t}(f - f_{t-1})                        the residual, averaged down
        i_t = nearest codes of r_t                                one codebook for all scales
        f_t = f_{t-1} + phi_t(bicubic_{h_T, w_T}(e[i_t]))         phi(x) = (1 - q) x + q conv(x)
    z_q = f_T
    loss = mean over t of the inner quantizer's terms between f and f_t (weighted where `scale_weights` says), and
        matching terms between the r_t and e

Every code and every phi so receives gradient from its own scale and all later ones. Inside, maps are channels last.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vqdm_cuda.distributed import all_reduce_sum
from vqdm_cuda.quantizers.base import Quantized, Quantizer, detached, total
from vqdm_cuda.quantizers.layout import check_features, check_indices, working_dtype
from vqdm_cuda.quantizers.phi import Phi
from vqdm_cuda.quantizers.resize import Pyramid
from vqdm_cuda.quantizers.scales import grids, normalized_weights
from vqdm_cuda.quantizers.structure import Structure

__all__ = ["MultiScaleQuantizer"]

MATCHING = ("pooled", "per_scale", "pooled_and_last")

# Weight of one training step in `usage`, VAR's long-run value.
_USAGE_STEP = 0.01


class MultiScaleQuantizer(Structure):
    """Quantises a latent map [B, d, h_T, w_T] into T maps of indices [B, h_t, w_t].

    The index maps of an image depend on that image alone. In training the images of a batch run together, where
    convolutions may round differently by batch size; `eval()`, `encode` and `decode` take one image after the other and
    agree to the bit with one another.

    `usage` [T, K], a buffer that is saved, holds an exponential average of how often training chose each code at each
    scale; a row divided by its sum is a frequency.

    Args:
        inner: the quantizer that all scales share; its loss weights, gradient and matching apply.
        scales: the grid of each scale, ints for squares or (h, w); the last one is the size of the latents.
        phi_kernel_size: kernel of the convolutions after upsampling; odd.
        phi_ratio: q, from 0 (no phi) to 1.
        num_phi: how many phi the scales share: 0 (or T and more) for one each, 1 for a single one, None for none. In
            between, scale t takes the phi whose place among `num_phi` places spread over [0, 1] is nearest to t's.
        matching: "pooled", one matching loss over the residuals of all scales together; "per_scale", the mean of one
            for each; "pooled_and_last", the pooled one plus one over the residuals of the last scale. An inner
            quantizer with a queue keeps one set of vectors, so it takes "pooled" alone.
        scale_weights: weights of the scales in the loss between f and the f_t, divided by their sum; None weighs all
            alike.
    """

    kind: ClassVar[str] = "multi_scale"

    def __init__(
        self,
        inner: Quantizer,
        scales: Sequence[int | Sequence[int]],
        *,
        phi_kernel_size: int = 3,
        phi_ratio: float = 0.5,
        num_phi: int | None = 4,
        matching: str = "pooled",
        scale_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(inner, "every scale asks it for the codes of single vectors")
        self._refuse_unfit_for_residuals()
        if matching not in MATCHING:
            raise ValueError(f"MultiScaleQuantizer: expected matching to be one of {MATCHING}, got {matching!r}")
        if matching != "pooled" and self.inner.queue_size:
            raise ValueError(
                "MultiScaleQuantizer: expected matching 'pooled' with an inner quantizer that has a queue, which holds "
                f"one set of vectors, got {matching!r}"
            )
        self.scales = grids(scales)
        T = len(self.scales)
        self.phi_kernel_size = phi_kernel_size
        self.phi_ratio = phi_ratio
        self.num_phi = num_phi
        self.matching = matching
        self.scale_weights = None if scale_weights is None else list(scale_weights)
        self._weights = None if scale_weights is None else normalized_weights(scale_weights, T)
        self.phi = Phi(self.code_dim, T, kernel_size=phi_kernel_size, ratio=phi_ratio, num_phi=num_phi)
        if len(self.phi) and not self.inner.trains_maps:
            raise ValueError(
                f"MultiScaleQuantizer: expected num_phi None with inner {type(self.inner).__name__}, no term of whose "
                f"loss would train a phi, got {num_phi}"
            )
        if self._weights is not None:
            trained = self.phi.of_scale[: 1 + max(t for t, weight in enumerate(self._weights) if weight)]
            if set(trained) != set(self.phi.of_scale):
                raise ValueError(
                    "MultiScaleQuantizer: expected scale_weights to leave no phi without a weight at its first scale "
                    f"or after it, where it would never be trained, got {self.scale_weights} with phi placed as "
                    f"{self.phi.of_scale}"
                )
        self.usage: Tensor
        self.register_buffer("usage", torch.zeros(T, self.codebook_size))
        self.pyramid = Pyramid(self.scales)

    # Facts -----------------------------------------------------------------------------------------------------------

    @property
    def latent_size(self) -> tuple[int, int]:
        return self.scales[-1]

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "inner": self.inner.config,
            "scales": [list(scale) for scale in self.scales],
            "phi_kernel_size": self.phi_kernel_size,
            "phi_ratio": self.phi_ratio,
            "num_phi": self.num_phi,
            "matching": self.matching,
            "scale_weights": self.scale_weights,
        }

    # The interface ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        z: Tensor,  # [B, d, h_T, w_T]
        return_terms: bool = False,
    ) -> Any:
        """`Quantized` with a list of T index maps [B, h_t, w_t], or the pair of it and the terms of the loss."""
        self._check(type(self).__name__, z)
        with torch.autocast(z.device.type, enabled=False):
            f = z.to(working_dtype(z.dtype)).permute(0, 2, 3, 1).contiguous()
            assign = self.inner.assign_batch  # of a scale's residuals, of all images together
            indices, f_hats, residuals = self._scan(f, assign) if self.training else self._scan_each(f)
            terms = self._fit_terms(f, f_hats) | self._matching_terms(residuals)
            rows, codes = f.reshape(-1, self.code_dim), f_hats[-1].reshape(-1, self.code_dim)
            z_q = self.inner.pass_gradient(rows, codes).to(z.dtype).view(f.shape).permute(0, 3, 1, 2)
            if self.training:
                self._count(indices)
                rows = torch.cat([residual.reshape(-1, self.code_dim) for residual in residuals])
                self.inner.update(rows.detach(), torch.cat([i.reshape(-1) for i in indices]))
        quantized = Quantized(z_q, indices, total(terms))
        return (quantized, detached(terms)) if return_terms else quantized

    @torch.no_grad()
    def encode(
        self,
        z: Tensor,  # [B, d, h_T, w_T]
    ) -> list[Tensor]:
        """The T index maps [B, h_t, w_t] alone, without a graph."""
        self._check(f"{type(self).__name__}.encode", z)
        with torch.autocast(z.device.type, enabled=False):
            return self._scan_each(z.to(working_dtype(z.dtype)).permute(0, 2, 3, 1).contiguous())[0]

    def decode(
        self,
        indices: Sequence[Tensor],  # T maps [B, h_t, w_t] int64
    ) -> Tensor:
        """z_q [B, d, h_T, w_T] of the index maps, equal to the forward pass's.

        Raises:
            TypeError: the indices are not integers.
            ValueError: a map has not its scale's size, or an index lies outside the codebook.
        """
        name = f"{type(self).__name__}.decode"
        got = [list(i.shape) for i in indices]
        expected = [[got[0][0], *scale] for scale in self.scales] if got and got[0] else None
        if got != expected:
            sizes = ", ".join(f"[B, {h}, {w}]" for h, w in self.scales)
            raise ValueError(f"{name}: expected indices of the sizes {sizes}, got {got}")
        for i in indices:
            check_indices(name, i, self.codebook_size)
        (B, *_), (h, w), e = got[0], self.latent_size, self.codebook
        dtype = working_dtype(e.dtype)
        with torch.autocast(e.device.type, enabled=False):
            ups = [up for _, up in self.pyramid.resizers()]
            images = [torch.zeros(0, h, w, self.code_dim, dtype=dtype, device=e.device)]
            for b in range(B):
                f_hat = images[0].new_zeros(1, h, w, self.code_dim)
                for t in range(len(self.scales)):
                    f_hat = f_hat + self._map_of_codes(t, indices[t][b : b + 1], ups[t], dtype)
                images.append(f_hat)
        return torch.cat(images).permute(0, 3, 1, 2)

    # The pass over the scales ----------------------------------------------------------------------------------------

    def _scan(
        self,
        f: Tensor,  # [B, h_T, w_T, d]
        assign: Callable[[Tensor], Tensor],  # [N, d] -> [N]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each scale: indices [B, h_t, w_t], f_t [B, h_T, w_T, d], residual [B, h_t, w_t, d].

        f_t carries gradient to codes and phi, the residual to f: quantising scale t treats the scales before as given.
        """
        indices, f_hats, residuals = [], [], []
        f_hat = torch.zeros_like(f)
        for t, (down, up) in enumerate(self.pyramid.resizers()):
            residual = down(f - f_hat.detach())
            chosen = assign(residual.detach().reshape(-1, self.code_dim)).view(residual.shape[:-1])
            f_hat = f_hat + self._map_of_codes(t, chosen, up, f.dtype)
            indices.append(chosen)
            f_hats.append(f_hat)
            residuals.append(residual)
        return indices, f_hats, residuals

    def _scan_each(
        self,
        f: Tensor,  # [B, h_T, w_T, d]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """`_scan` of one image after the other: products and convolutions round differently by batch size."""
        if f.shape[0] == 0:
            return self._scan(f, self.inner.assign)
        images = [self._scan(f[b : b + 1], self.inner.assign) for b in range(f.shape[0])]
        indices, f_hats, residuals = (
            [torch.cat(maps) for maps in zip(*part, strict=True)] for part in zip(*images, strict=True)
        )
        return indices, f_hats, residuals

    def _map_of_codes(
        self,
        t: int,
        indices: Tensor,  # [B, h_t, w_t]
        up: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
    ) -> Tensor:
        """phi_t(bicubic(e[indices])) [B, h_T, w_T, d]: what scale t adds."""
        codes = self.inner.lookup(indices.reshape(-1).long()).to(dtype).view(*indices.shape, self.code_dim)
        return self.phi(up(codes), t)

    def _fit_terms(
        self,
        f: Tensor,  # [B, h_T, w_T, d]
        f_hats: list[Tensor],  # T of that shape
    ) -> dict[str, Tensor]:
        if self._weights is None:
            return self.inner.fit_terms(f, torch.stack(f_hats))
        weighted = [(weight, f_hat) for weight, f_hat in zip(self._weights, f_hats, strict=True) if weight]
        scales = [(weight, self.inner.fit_terms(f, f_hat)) for weight, f_hat in weighted]
        return {name: torch.stack([weight * terms[name] for weight, terms in scales]).sum() for name in scales[0][1]}

    def _matching_terms(
        self,
        residuals: list[Tensor],  # T maps [B, h_t, w_t, d]
    ) -> dict[str, Tensor]:
        rows = [residual.reshape(-1, self.code_dim) for residual in residuals]
        if self.matching == "per_scale":
            scales = [self.inner.matching_terms(r) for r in rows]
            return {name: torch.stack([terms[name] for terms in scales]).mean() for name in scales[0]}
        pooled = self.inner.matching_terms(torch.cat(rows))
        if self.matching == "pooled":
            return pooled
        last = self.inner.matching_terms(rows[-1])
        return {name: pooled[name] + last[name] for name in pooled}

    @torch.no_grad()
    def _count(
        self,
        indices: list[Tensor],  # T maps [B, h_t, w_t]
    ) -> None:
        """Moves `usage` towards the counts of this step; whole numbers in float32, so in any order the same bits."""
        T, K = self.usage.shape
        chosen = torch.cat([i.reshape(-1) + t * K for t, i in enumerate(indices)])
        counts = torch.zeros(T * K, device=chosen.device).index_add_(
            0, chosen, torch.ones(chosen.shape, device=chosen.device)
        )
        if self.group is not None:
            counts = all_reduce_sum(counts, self.group)
        self.usage.lerp_(counts.view(T, K).to(self.usage.dtype), _USAGE_STEP)

    def _check(self, name: str, z: Tensor) -> None:
        if z.dim() != 4 or tuple(z.shape[2:]) != self.latent_size:
            h, w = self.latent_size
            raise ValueError(f"{name}: expected z [B, {self.code_dim}, {h}, {w}], got {list(z.shape)}")
        check_features(name, z, self.code_dim)
