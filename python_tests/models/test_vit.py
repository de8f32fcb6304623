"""The vision transformer of ViT-VQGAN against its formulas, its sizes, its positions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqdm_cuda.models import ViTDecoder, ViTEncoder
from vqdm_cuda.models.vit import _positions

SIZES = (3, 6, 4, 16, 2, 2, 24)  # in_channels, latent_channels, patch_size, width, depth, num_heads, mlp_width


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def test_a_block_is_attention_and_two_layers():
    torch.manual_seed(0)
    block: Any = ViTEncoder(*SIZES).double().transformer.blocks[0]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = (norm(x, block.norm1) @ block.qkv.weight.T).split(16, dim=-1)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(8)
        heads.append(scores.softmax(-1) @ v[..., part])
    y = x + torch.cat(heads, dim=-1) @ block.proj.weight.T + block.proj.bias
    first, _, second = block.mlp
    hidden = torch.tanh(norm(y, block.norm2) @ first.weight.T + first.bias)
    torch.testing.assert_close(block(x), y + hidden @ second.weight.T + second.bias, rtol=1e-11, atol=1e-11)


def test_positions_are_waves_of_column_and_row():
    table = _positions(3, 5, 16, torch.device("cpu")).view(3, 5, 16)
    for row in range(3):
        for column in range(5):
            for part, number in ((table[row, column, :8], column), (table[row, column, 8:], row)):
                angles = [number * 10_000 ** (-i / 4) for i in range(4)]
                expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                torch.testing.assert_close(part, torch.tensor(expected))


def test_the_base_size_has_the_published_parameters():
    """12 blocks of 768: 4 768^2 of attention and 2 768 3072 of the two layers, each; both networks of the same size."""
    with torch.device("meta"):
        encoder, decoder = ViTEncoder(), ViTDecoder()
    block = 4 * 768**2 + 768 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    ends = 8 * 8 * 3 * 768 + 2 * 768 + 768 * 32
    assert sum(p.numel() for p in encoder.parameters()) == 12 * block + ends + 768 + 32
    assert sum(p.numel() for p in decoder.parameters()) == 12 * block + ends + 768 + 3
    assert encoder.factor == decoder.factor == 8


def test_images_of_any_size_that_patches_fill():
    encoder, decoder = ViTEncoder(*SIZES), ViTDecoder(*SIZES)
    z = encoder(torch.randn(2, 3, 8, 20))
    assert z.shape == (2, 6, 2, 5)
    assert decoder(z).shape == (2, 3, 8, 20)


@pytest.mark.parametrize("network", [ViTEncoder, ViTDecoder])
def test_every_parameter_gets_a_gradient(network):
    torch.manual_seed(0)
    model = network(*SIZES)
    model(torch.randn(2, 3, 8, 12) if network is ViTEncoder else torch.randn(2, 6, 2, 3)).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


def test_autocast_and_half_precision_run():
    encoder, x = ViTEncoder(*SIZES), torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(x).isfinite().all()
    assert encoder.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "expected depth of at least 1, got 0"),
        ({"width": 10, "num_heads": 5}, "expected width to be a multiple of num_heads 5 and of 4, got 10"),
        ({"width": 16, "num_heads": 3}, "expected width to be a multiple of num_heads 3 and of 4, got 16"),
    ],
)
def test_bad_options_are_refused(options, message):
    for network in (ViTEncoder, ViTDecoder):
        with pytest.raises(ValueError, match=f"ViTOptions: {message}"):
            network(**options)
