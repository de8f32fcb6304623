"""The tokenizer of a run: each network that a config can name, its start, and options that would do nothing."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from vqdm_cuda import Decoder, Encoder, ViTDecoder, ViTEncoder
from vqdm_cuda.models.blocks import SpatialNorm
from vqdm_train.model import ModelConfig, ViTConfig, build_tokenizer
from vqdm_train.quantizer import QuantizerConfig

VQGAN: dict[str, Any] = {
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "latent_channels": 8,
    "norm_groups": 4,
}
QUANTIZER = QuantizerConfig(kind="vector", codebook_size=20, wasserstein_weight=0.0)
VIT = ModelConfig(
    network="vit", latent_channels=8, patch_size=4, vit=ViTConfig(width=12, depth=1, num_heads=3, mlp_width=8)
)


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        (ModelConfig(**VQGAN), 2),
        (ModelConfig(**VQGAN, patch_size=2, latent_patch_size=2, z_channels=6), 8),
        (ModelConfig(**VQGAN, spatial_norm=True), 2),
        (VIT, 4),
        (ModelConfig(network="small", latent_channels=8), 4),
    ],
    ids=["vqgan", "patches", "spatial norm", "vit", "small"],
)
def test_every_network_is_built_and_learns(config, factor):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config, QUANTIZER, 3)
    assert tokenizer.factor == config.downsampling == factor
    images = torch.rand(2, 3, 16, 8) * 2 - 1
    reconstruction, quantized = tokenizer(images)
    assert quantized.indices.shape == (2, 16 // factor, 8 // factor)
    ((reconstruction - images).abs().mean() + quantized.loss).backward()
    assert not [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_options_reach_the_networks():
    tokenizer = build_tokenizer(VIT, QUANTIZER, 1)
    assert isinstance(tokenizer.encoder, ViTEncoder)
    assert isinstance(tokenizer.decoder, ViTDecoder)
    expected = {"in_channels": 1, "latent_channels": 8, "patch_size": 4, "width": 12, "depth": 1, "num_heads": 3}
    assert vars(tokenizer.encoder.options) == vars(tokenizer.decoder.options) == expected | {"mlp_width": 8}
    patches = build_tokenizer(ModelConfig(**VQGAN, latent_patch_size=2, z_channels=6, spatial_norm=True), QUANTIZER, 3)
    assert isinstance(patches.decoder, Decoder)
    for network in (patches.encoder, patches.decoder):
        assert (network.config["latent_patch_size"], network.config["z_channels"]) == (2, 6)
    assert patches.decoder.spatial_norm


def test_a_spatial_norm_starts_near_a_group_norm():
    torch.manual_seed(0)
    decoder = build_tokenizer(ModelConfig(**VQGAN, spatial_norm=True), QUANTIZER, 3).decoder
    norms = [module for module in decoder.modules() if isinstance(module, SpatialNorm)]
    assert norms
    for norm in norms:
        x, z_q = torch.randn(2, norm.num_channels, 8, 8), torch.randn(2, 8, 4, 4)
        plain = nn.functional.group_norm(x, norm.num_groups, eps=1e-6)
        difference = (norm(x, z_q) - plain).square().mean().sqrt().item()
        # Two 1x1 convolutions of 8 channels with a tenth of the Xavier deviation, one times a normal number.
        assert 0 < difference < 0.1 * math.sqrt(8 * 2 / (8 + norm.num_channels) * 2) * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"z_channels": 0}, "model: expected z_channels >= 1, got 0"),
        ({"latent_patch_size": 0}, "model: expected latent_patch_size >= 1, got 0"),
        (
            {"latent_patch_size": 3},
            r"model: expected latent_channels to be a multiple of latent_patch_size\^2 = 9, got 32",
        ),
        ({"network": "vit", "spatial_norm": True}, "model: expected spatial_norm only in a vqgan network, got"),
        ({"network": "vit", "z_channels": 4}, "model: expected z_channels only in a vqgan network, got z_channels=4"),
        ({"network": "small", "patch_size": 2}, "model: expected patch_size only in a vqgan or vit network, got"),
        ({"vit": ViTConfig(depth=2)}, "model: expected vit.depth only in a vit network, got vit.depth=2"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ModelConfig(**options)


def test_vit_options_are_checked():
    with pytest.raises(ValueError, match=r"model\.vit: expected depth >= 1, got 0"):
        ViTConfig(depth=0)
    with pytest.raises(
        ValueError, match=r"model\.vit: expected width to be a multiple of num_heads 12 and of 4, got 90"
    ):
        ViTConfig(width=90)


def test_fresh_networks_are_almost_linear() -> None:
    """Twice the contrast of an image gives twice the change at the first block, and every bias starts at 0."""
    encoder = build_tokenizer(ModelConfig(**VQGAN, residual_gain=0.0), QUANTIZER, 3).encoder
    assert isinstance(encoder, Encoder)
    assert all((p == 0).all() for name, p in encoder.named_parameters() if name.endswith("conv1.bias"))
    x = torch.rand(1, 3, 32, 32)
    y = encoder.down[0](encoder.conv_in(x))
    torch.testing.assert_close(encoder.down[0](encoder.conv_in(2 * x)), 2 * y, rtol=1e-5, atol=1e-6)
