"""The tokenizer of a run: encoder, quantizer and decoder, built from their configs."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from vqdm_cuda import (
    Decoder,
    DecoderNetwork,
    Encoder,
    EncoderNetwork,
    ImageTokenizer,
    SmallDecoder,
    SmallEncoder,
    ViTDecoder,
    ViTEncoder,
)
from vqdm_train.quantizer import QuantizerConfig, build_quantizer

__all__ = ["ModelConfig", "ViTConfig", "build_tokenizer"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """As in `ViTEncoder`; the defaults are ViT-VQGAN's base size."""

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"model.vit: expected {name} >= 1, got {value}")
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(
                f"model.vit: expected width to be a multiple of num_heads {self.num_heads} and of 4, got {self.width}"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and decoder (mirrored); the defaults are VAR's tokenizer, 16 times downsampling.

    `network` "vit" is ViT-VQGAN's, "small" the autoencoder of OptVQ's Table 4, with torch's own initialisation: all of
    it but latent_channels is fixed.
    """

    network: Literal["vqgan", "vit", "small"] = "vqgan"
    latent_channels: int = 32  # also the dimension of the codes, of all heads together
    patch_size: int = 1  # pixels of each patch become channels before the first level, or the tokens of a vit
    # of network vqgan:
    base_channels: int = 160
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention: bool = True
    mid_attention: bool = True
    dropout: float = 0.0
    norm_groups: int = 32
    latent_kernel_size: int = 3
    latent_patch_size: int = 1  # latents of each patch become channels before the quantizer
    z_channels: int | None = None  # of encoder and decoder where they meet the quantizer's side; null: as many as there
    spatial_norm: bool = False  # MoVQ's decoder, whose norms see the quantized latents
    init_gain: float = 1.0  # of the Xavier initialisation of the convolutions
    residual_gain: float = 0.1  # further factor on what each residual block adds at the start
    # of network vit:
    vit: ViTConfig = field(default_factory=ViTConfig)

    def __post_init__(self) -> None:
        sizes = (
            "base_channels",
            "num_res_blocks",
            "latent_channels",
            "norm_groups",
            "latent_kernel_size",
            "patch_size",
            "latent_patch_size",
            "z_channels",
        )
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"model: expected {name} >= 1, got {value}")
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
        if self.latent_channels % self.latent_patch_size**2:
            raise ValueError(
                f"model: expected latent_channels to be a multiple of latent_patch_size^2 = {self.latent_patch_size**2}"
                f", got {self.latent_channels}"
            )
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """An option of another network does nothing, and is a mistake of the user's that silence would hide."""
        shared = {"network": "", "latent_channels": "", "patch_size": "vqgan or vit"}
        given = {name: (value, getattr(type(self), name)) for name, value in vars(self).items() if name != "vit"}
        given |= {f"vit.{name}": (value, getattr(ViTConfig, name)) for name, value in vars(self.vit).items()}
        for name, (value, default) in given.items():
            where = "vit" if name.startswith("vit.") else shared.get(name, "vqgan")
            if where and self.network not in where and value != default:
                raise ValueError(f"model: expected {name} only in a {where} network, got {name}={value}")

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position, along each side."""
        if self.network == "small":
            return 4
        if self.network == "vit":
            return self.patch_size
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1) * self.latent_patch_size


def build_tokenizer(model: ModelConfig, quantizer: QuantizerConfig, in_channels: int) -> ImageTokenizer:
    """A tokenizer with fresh random weights, drawn from torch's default generator."""
    encoder, decoder = _build_networks(model, in_channels)
    return ImageTokenizer(encoder, build_quantizer(quantizer, model.latent_channels), decoder)


def _build_networks(model: ModelConfig, in_channels: int) -> tuple[EncoderNetwork, DecoderNetwork]:
    if model.network == "small":
        return SmallEncoder(in_channels, model.latent_channels), SmallDecoder(in_channels, model.latent_channels)
    if model.network == "vit":
        shape = (in_channels, model.latent_channels, model.patch_size)
        return ViTEncoder(*shape, **vars(model.vit)), ViTDecoder(*shape, **vars(model.vit))
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
        "latent_patch_size": model.latent_patch_size,
        "z_channels": model.z_channels,
    }
    encoder = Encoder(in_channels=in_channels, **sizes)
    decoder = Decoder(in_channels=in_channels, **sizes, spatial_norm=model.spatial_norm)
    for network in (encoder, decoder):
        _initialize(network, model)
    return encoder, decoder


def _initialize(network: nn.Module, config: ModelConfig) -> None:
    """Xavier normal convolutions without bias, residual blocks that add little: a network that starts almost linear.

    Colours and edges then pass from the first step on, which torch's own initialisation lets fade at each convolution.
    A spatial norm starts as a group norm to which the latents add a little.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            adds = name.endswith((".conv2", ".proj_out", ".conv_y", ".conv_b"))
            nn.init.xavier_normal_(module.weight, config.init_gain * (config.residual_gain if adds else 1.0))
            if module.bias is not None:
                nn.init.constant_(module.bias, 1.0 if name.endswith(".conv_y") else 0.0)
