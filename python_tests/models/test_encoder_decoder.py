"""Encoder and decoder: VAR's tensors, shapes, memory formats, options."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vqdm_cuda.models import Decoder, Encoder, ImageTokenizer, SmallDecoder, ViTDecoder
from vqdm_cuda.models.options import NetworkOptions
from vqdm_cuda.quantizers import MultiScaleQuantizer, VectorQuantizer

SMALL: dict[str, Any] = {
    "base_channels": 8,
    "channel_multipliers": (1, 2, 2),
    "num_res_blocks": 1,
    "latent_channels": 6,
    "norm_groups": 4,
}

# Our names where they are not VAR's.
VAR_NAMES = {
    "encoder.quant_conv.": "quant_conv.",
    "decoder.post_quant_conv.": "post_quant_conv.",
    "quantizer.inner.weight": "quantize.embedding.weight",
    "quantizer.phi.": "quantize.quant_resi.qresi_ls.",
    "quantizer.usage": "quantize.ema_vocab_hit_SV",
}


def var_name(name: str) -> str:
    for ours, theirs in VAR_NAMES.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def test_a_tokenizer_configured_as_var_holds_vars_tensors():
    expected = json.loads(Path(__file__).with_name("var_vqvae_keys.json").read_text())
    with torch.device("meta"):
        quantizer = MultiScaleQuantizer(VectorQuantizer(4096, 32), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
        tokenizer = ImageTokenizer(Encoder(), quantizer, Decoder())
    ours = {var_name(name): list(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    assert len(expected) == 324
    assert ours == expected
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 108_948_355
    assert tokenizer.factor == 16


def test_patches_stand_for_levels():
    options = SMALL | {"patch_size": 4}
    encoder, decoder = Encoder(**options), Decoder(**options)
    images = torch.randn(2, 3, 32, 48)
    z = encoder(images)
    assert z.shape == (2, 6, 2, 3)
    assert decoder(z).shape == images.shape
    assert encoder.options.factor == 16
    # A patch's pixels, and no others, reach its position before the first convolution mixes positions.
    assert encoder.conv_in.in_channels == decoder.conv_out.out_channels == 3 * 16
    with pytest.raises(ValueError, match="patch_size of at least 1, got 0"):
        NetworkOptions(patch_size=0)


def test_latents_of_a_patch_become_channels():
    """As in the first published Wasserstein VQ: 4 channels at stride 8 are 16 channels at stride 16."""
    options = SMALL | {"latent_channels": 16, "latent_patch_size": 2, "latent_kernel_size": 1, "z_channels": 24}
    encoder, decoder = Encoder(**options), Decoder(**options)
    assert encoder.factor == decoder.factor == 8
    assert (encoder.conv_out.out_channels, encoder.quant_conv.out_channels) == (24, 4)
    assert (decoder.post_quant_conv.in_channels, decoder.conv_in.in_channels) == (4, 24)
    fine: list[torch.Tensor] = []
    encoder.quant_conv.register_forward_hook(lambda module, inputs, output: fine.append(output))
    decoder.post_quant_conv.register_forward_pre_hook(lambda module, inputs: fine.append(inputs[0]))
    images = torch.randn(2, 3, 16, 24)
    z = encoder(images)
    assert z.shape == (2, 16, 2, 3)
    assert decoder(z).shape == images.shape
    assert fine[0].shape == (2, 4, 4, 6)
    assert torch.equal(z[:, :, 1, 2], fine[0][:, :, 2:4, 4:6].flatten(1))
    assert torch.equal(fine[0], fine[1])
    with pytest.raises(ValueError, match=r"latent_channels to be a multiple of latent_patch_size\^2, 4, got 6"):
        NetworkOptions(latent_channels=6, latent_patch_size=2)


def test_a_spatially_normalised_decoder_sees_the_latents_at_every_level():
    torch.manual_seed(0)
    decoder, plain = Decoder(**SMALL, spatial_norm=True), Decoder(**SMALL)
    assert decoder.config["spatial_norm"] is True
    more = {name for name, _ in decoder.named_parameters()} - {name for name, _ in plain.named_parameters()}
    norms = [name for name, _ in plain.named_parameters() if "norm" in name and name.endswith("weight")]
    assert len(more) == 4 * len(norms)
    assert all(name.rsplit(".", 2)[1] in ("conv_y", "conv_b") for name in more)
    z = torch.randn(2, 6, 2, 3, requires_grad=True)
    assert decoder(z).shape == (2, 3, 8, 12)
    # With no path through the first convolution, the image still follows the latents.
    for parameter in decoder.post_quant_conv.parameters():
        torch.nn.init.zeros_(parameter)
    decoder(z).square().sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).all()


@pytest.mark.parametrize("decoder", [Decoder(**SMALL), ViTDecoder(6, 6, 4, 8, 1, 2, 12), SmallDecoder(3, 6)])
def test_the_last_layer_is_the_last(decoder):
    torch.manual_seed(0)
    z = torch.randn(1, decoder.latent_channels, 2, 2)
    before = decoder(z)
    with torch.no_grad():
        decoder.last_layer.mul_(2)
        bias = dict(decoder.named_parameters())[
            next(name for name, p in decoder.named_parameters() if p is decoder.last_layer).replace("weight", "bias")
        ]
        bias.mul_(2)
    # Small decoders end with a relu and go from [0, 1] to [-1, 1].
    expected = 2 * before + 1 if isinstance(decoder, SmallDecoder) else 2 * before
    torch.testing.assert_close(decoder(z), expected)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("latent_kernel_size", [1, 3])
def test_shapes_are_mirrored(attention, latent_kernel_size):
    options = SMALL | {
        "in_channels": 1,
        "attention": attention,
        "mid_attention": attention,
        "latent_kernel_size": latent_kernel_size,
    }
    encoder, decoder = Encoder(**options), Decoder(**options)
    latents = encoder(torch.randn(2, 1, 16, 24))
    assert latents.shape == (2, 6, 4, 6)
    assert decoder(latents).shape == (2, 1, 16, 24)
    assert any("attn" in name for name, _ in encoder.named_parameters()) == attention
    assert any("attn" in name for name, _ in decoder.named_parameters()) == attention
    assert encoder.quant_conv.kernel_size == decoder.post_quant_conv.kernel_size == (latent_kernel_size,) * 2


def test_one_level_keeps_the_resolution():
    options = SMALL | {"channel_multipliers": (1,)}
    assert Encoder(**options)(torch.randn(1, 3, 5, 7)).shape == (1, 6, 5, 7)
    assert Decoder(**options)(torch.randn(1, 6, 5, 7)).shape == (1, 3, 5, 7)


@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_every_parameter_gets_a_gradient(network):
    model = network(**SMALL)
    x = torch.randn(2, 3, 8, 8) if network is Encoder else torch.randn(2, 6, 2, 2)
    model(x).square().sum().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert not idle


@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_channels_last_changes_the_layout_and_not_the_result(network):
    model = network(**SMALL)
    x = torch.randn(2, 3, 8, 8) if network is Encoder else torch.randn(2, 6, 2, 2)
    expected = model(x)
    out = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_the_configuration_rebuilds_the_network(network):
    config = network(**SMALL, dropout=0.1, attention=False).config
    assert config.pop("kind") == network.kind
    assert json.loads(json.dumps(config)) == config
    again: nn.Module = network(**config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in network(**SMALL, dropout=0.1, attention=False).state_dict().items()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_channels": 0}, "base_channels of at least 1, got 0"),
        ({"in_channels": -1}, "in_channels of at least 1, got -1"),
        ({"channel_multipliers": ()}, r"positive channel_multipliers, got \(\)"),
        ({"channel_multipliers": (1, 0)}, r"positive channel_multipliers, got \(1, 0\)"),
        ({"latent_kernel_size": 2}, "latent_kernel_size to be odd and positive, got 2"),
        ({"dropout": 1.0}, "dropout from 0 to below 1, got 1.0"),
        ({"latent_patch_size": 0}, "latent_patch_size of at least 1, got 0"),
        ({"z_channels": 0}, "z_channels of at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"NetworkOptions: expected {message}"):
        NetworkOptions(**options)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="expected norm_groups to divide the 40 channels, got 32"):
        Encoder(base_channels=40)
