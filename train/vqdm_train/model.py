"""The tokenizer of a run: encoder, quantizer and decoder, built from their configs."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from vqdm_cuda import Decoder, Encoder, ImageTokenizer, SmallDecoder, SmallEncoder
from vqdm_train.quantizer import QuantizerConfig, build_quantizer

__all__ = ["ModelConfig", "build_tokenizer"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and decoder (mirrored); the defaults are VAR's tokenizer, 16 times downsampling.

    `network` "small" is the autoencoder of OptVQ's Table 4, with torch's own initialisation: all of it but
    latent_channels is fixed.
    """

    network: Literal["vqgan", "small"] = "vqgan"
    latent_channels: int = 32  # also the dimension of the codes, of all heads together
    # of network vqgan:
    base_channels: int = 160
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention: bool = True
    mid_attention: bool = True
    dropout: float = 0.0
    norm_groups: int = 32
    latent_kernel_size: int = 3
    patch_size: int = 1  # pixels of each patch become channels before the first level
    init_gain: float = 1.0  # of the Xavier initialisation of the convolutions
    residual_gain: float = 0.1  # further factor on what each residual block adds at the start

    def __post_init__(self) -> None:
        sizes = (
            "base_channels",
            "num_res_blocks",
            "latent_channels",
            "norm_groups",
            "latent_kernel_size",
            "patch_size",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"model: expected {name} >= 1, got {getattr(self, name)}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"model: expected channel_multipliers >= 1, got {list(self.channel_multipliers)}")
        if self.latent_kernel_size % 2 == 0:
            raise ValueError(f"model: expected an odd latent_kernel_size, got {self.latent_kernel_size}")
        if any(self.base_channels * m % self.norm_groups for m in self.channel_multipliers):
            raise ValueError(
                f"model: expected norm_groups to divide base_channels {self.base_channels} times each of "
                f"channel_multipliers {list(self.channel_multipliers)}, got {self.norm_groups}"
            )
        if self.init_gain <= 0 or self.residual_gain < 0:
            raise ValueError(
                f"model: expected init_gain > 0 and residual_gain >= 0, got {self.init_gain} and {self.residual_gain}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model: expected dropout in [0, 1), got {self.dropout}")
        for option in fields(self):
            value = getattr(self, option.name)
            if (
                self.network == "small"
                and option.name not in ("network", "latent_channels")
                and value != option.default
            ):
                raise ValueError(f"model: expected {option.name} only in a vqgan network, got {option.name}={value}")

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position, along each side."""
        if self.network == "small":
            return 4
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)


def build_tokenizer(model: ModelConfig, quantizer: QuantizerConfig, in_channels: int) -> ImageTokenizer:
    """A tokenizer with fresh random weights, drawn from torch's default generator."""
    encoder, decoder = _build_networks(model, in_channels)
    return ImageTokenizer(encoder, build_quantizer(quantizer, model.latent_channels), decoder)


def _build_networks(
    model: ModelConfig, in_channels: int
) -> tuple[Encoder, Decoder] | tuple[SmallEncoder, SmallDecoder]:
    if model.network == "small":
        return SmallEncoder(in_channels, model.latent_channels), SmallDecoder(in_channels, model.latent_channels)
    sizes: dict[str, Any] = {
        "base_channels": model.base_channels,
        "channel_multipliers": model.channel_multipliers,
        "num_res_blocks": model.num_res_blocks,
        "latent_channels": model.latent_channels,
        "attention": model.attention,
        "mid_attention": model.mid_attention,
        "dropout": model.dropout,
        "norm_groups": model.norm_groups,
        "latent_kernel_size": model.latent_kernel_size,
        "patch_size": model.patch_size,
    }
    encoder = Encoder(in_channels=in_channels, **sizes)
    decoder = Decoder(in_channels=in_channels, **sizes)
    for network in (encoder, decoder):
        _initialize(network, model)
    return encoder, decoder


def _initialize(network: nn.Module, config: ModelConfig) -> None:
    """Xavier normal convolutions without bias, residual blocks that add little: a network that starts almost linear.

    Colours and edges then pass from the first step on, which torch's own initialisation lets fade at each convolution.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            last_of_block = name.endswith((".conv2", ".proj_out"))
            nn.init.xavier_normal_(module.weight, config.init_gain * (config.residual_gain if last_of_block else 1.0))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
