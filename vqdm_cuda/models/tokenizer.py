"""Image tokenizer: encoder, quantizer, decoder.

indices = quantizer.encode(encoder(images))    images ~ decoder(quantizer.decode(indices))
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqdm_cuda.models import pretrained
from vqdm_cuda.models.checkpointing import CheckpointedBlock
from vqdm_cuda.models.network import DecoderNetwork, EncoderNetwork
from vqdm_cuda.quantizers import Quantizer

__all__ = ["ImageTokenizer"]


class ImageTokenizer(nn.Module):
    """Images to discrete tokens and back.

    Images are floating point [B, C, H, W] with values in [-1, 1], C = `in_channels`, H and W multiples of `factor` (for
    a multi-scale quantizer, the size its scales say). Shape and type are checked on every call; the range is not, since
    that would read all pixels and, on a GPU, wait for them.

    Raises:
        TypeError: images are not floating point, or a part is not of its class.
        ValueError: images have another shape, or the parts do not fit together.
    """

    def __init__(self, encoder: EncoderNetwork, quantizer: Quantizer, decoder: DecoderNetwork) -> None:
        super().__init__()
        for part, value, expected in (
            ("encoder", encoder, EncoderNetwork),
            ("quantizer", quantizer, Quantizer),
            ("decoder", decoder, DecoderNetwork),
        ):
            if not isinstance(value, expected):
                raise TypeError(
                    f"ImageTokenizer: expected {part} to be {expected.__name__}, got {type(value).__name__}"
                )
        dims = [encoder.latent_channels, quantizer.code_dim, decoder.latent_channels]
        if len(set(dims)) != 1:
            raise ValueError(
                f"ImageTokenizer: expected encoder, quantizer and decoder of one latent dimension, got {dims}"
            )
        for option in ("factor", "in_channels"):
            ours, theirs = getattr(encoder, option), getattr(decoder, option)
            if ours != theirs:
                raise ValueError(
                    f"ImageTokenizer: expected encoder and decoder of equal {option}, got {ours} and {theirs}"
                )
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.encoder.in_channels

    @property
    def factor(self) -> int:
        """How many times smaller the latents are than the images, along each side."""
        return self.encoder.factor

    @property
    def config(self) -> dict[str, Any]:
        """The configurations of the parts as plain data."""
        return {
            "encoder": self.encoder.config,
            "quantizer": self.quantizer.config,
            "decoder": self.decoder.config,
        }

    def forward(
        self,
        images: Tensor,  # [B, C, H, W] in [-1, 1]
        return_terms: bool = False,
    ) -> tuple[Any, ...]:
        """(reconstruction [B, C, H, W], Quantized), and the quantizer's loss terms where asked for.

        The reconstruction is not clamped: a loss needs its gradient outside [-1, 1] too.
        """
        self._check("ImageTokenizer", images)
        z = self.encoder(images)
        if return_terms:
            quantized, terms = self.quantizer(z, return_terms=True)
            return self.decoder(quantized.z_q), quantized, terms
        quantized = self.quantizer(z)
        return self.decoder(quantized.z_q), quantized

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,  # [B, C, H, W] in [-1, 1]
        per_image: bool = False,
    ) -> Any:
        """The tokens: int64 [B, h, w], with one dimension more of several heads, or a list of [B, h_t, w_t] of several
        scales.

        With `per_image` each image runs alone and its tokens are the same to the bit in any batch; without,
        convolutions may round differently by batch size and move a token that was nearly tied.
        """
        self._check("ImageTokenizer.encode", images)
        if not per_image:
            return self.quantizer.encode(self.encoder(images))
        # A copy each: a convolution's rounding may also depend on the layout and the place in memory of its input.
        tokens = [
            self.quantizer.encode(self.encoder(image.clone(memory_format=torch.contiguous_format)))
            for image in images.split(1)
        ]
        if isinstance(tokens[0], list):
            return [torch.cat(maps) for maps in zip(*tokens, strict=True)]
        return torch.cat(tokens)

    def decode(
        self,
        indices: Any,  # as `encode` returns them
    ) -> Tensor:
        """Images [B, C, H, W], clamped to [-1, 1]."""
        z_q = self.quantizer.decode(indices)
        if z_q.dim() != 4:
            raise ValueError(f"ImageTokenizer.decode: expected indices of images [B, h, w], got {list(indices.shape)}")
        return self.decoder(z_q.to(next(self.decoder.parameters()).dtype)).clamp(-1, 1)

    def reconstruct(
        self,
        images: Tensor,  # [B, C, H, W] in [-1, 1]
    ) -> Tensor:
        """decode(encode(images)): [B, C, H, W] in [-1, 1]."""
        return self.decode(self.encode(images))

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """In training, lets the blocks of encoder and decoder compute their activations again in the backward pass
        instead of keeping them: less memory, one forward pass more, and the same gradients.

        Not part of a saved tokenizer.
        """
        for module in self.modules():
            if isinstance(module, CheckpointedBlock):
                module.checkpoint_activations = enabled

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and `config.json`; each is complete before it takes its name."""
        pretrained.save(self, self.config, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ImageTokenizer":
        """The tokenizer that `save_pretrained` wrote, on the CPU, in float32 and in eval mode.

        Reads tensors and plain data, and nothing that could run code.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the configuration is not one of ours, or the tensors are not the model's.
        """
        return pretrained.load(Path(folder), cls)

    def _check(self, name: str, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(f"{name}: expected images to be a tensor, got {type(images).__name__}")
        if not images.is_floating_point():
            raise TypeError(f"{name}: expected images of a floating point type in [-1, 1], got {images.dtype}")
        size, factor = self.quantizer.latent_size, self.factor
        if size is not None:
            expected = f"[B, {self.in_channels}, {size[0] * factor}, {size[1] * factor}]"
            fits = images.dim() == 4 and tuple(images.shape[2:]) == (size[0] * factor, size[1] * factor)
        else:
            expected = f"[B, {self.in_channels}, H, W] with H and W multiples of {factor}"
            fits = images.dim() == 4 and all(side > 0 and side % factor == 0 for side in images.shape[2:])
        if not fits or images.shape[1] != self.in_channels:
            raise ValueError(f"{name}: expected images {expected}, got {list(images.shape)}")
