"""The blocks against their formulas written out with plain tensor operations."""

from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqdm_cuda.models.blocks import (
    AttentionBlock,
    Downsample,
    MiddleBlocks,
    ResidualBlock,
    SpatialNorm,
    Upsample,
    normalization,
)

CHANNELS_LAST = torch.channels_last

Module = TypeVar("Module", bound=torch.nn.Module)


def parameters(module: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    weight, bias = module.parameters()
    return weight, bias


def norm(x: Tensor, layer: torch.nn.Module) -> Tensor:
    """Group normalisation by its definition: biased variance over the channels of a group and all positions."""
    assert isinstance(layer, torch.nn.GroupNorm)
    groups = x.view(x.shape[0], layer.num_groups, -1)
    centred = groups - groups.mean(-1, keepdim=True)
    normal = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).view(x.shape)
    return normal * layer.weight[:, None, None] + layer.bias[:, None, None]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def shuffled(module: Module) -> Module:
    """In float64, with no parameter at a value that hides it (norms start at one and zero)."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double()


@pytest.mark.parametrize("out_channels", [8, 12])
def test_residual_block(out_channels):
    block = shuffled(ResidualBlock(8, out_channels, dropout=0.0, norm_groups=4))
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    h = F.conv2d(silu(norm(x, block.norm1)), *parameters(block.conv1), padding=1)
    h = F.conv2d(silu(norm(h, block.norm2)), *parameters(block.conv2), padding=1)
    shortcut = x if out_channels == 8 else F.conv2d(x, *parameters(block.nin_shortcut))
    torch.testing.assert_close(block(x), shortcut + h, rtol=1e-11, atol=1e-11)
    assert isinstance(block.nin_shortcut, torch.nn.Identity) == (out_channels == 8)


def test_attention_block():
    block = shuffled(AttentionBlock(8, norm_groups=4))
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    q, k, v = F.conv2d(norm(x, block.norm), *parameters(block.qkv)).flatten(2).split(8, dim=1)
    scores = torch.einsum("bci,bcj->bij", q, k) * 8**-0.5
    attended = torch.einsum("bij,bcj->bci", scores.softmax(-1), v).view(x.shape)
    expected = x + F.conv2d(attended, *parameters(block.proj_out))
    torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-11)


def test_spatial_norm():
    layer = shuffled(SpatialNorm(8, 4, 3))
    x, z_q = torch.randn(2, 8, 6, 4, dtype=torch.float64), torch.randn(2, 3, 3, 2, dtype=torch.float64)
    z = z_q.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = norm(x, layer) * F.conv2d(z, *parameters(layer.conv_y)) + F.conv2d(z, *parameters(layer.conv_b))
    torch.testing.assert_close(layer(x, z_q), expected, rtol=1e-11, atol=1e-11)


def test_blocks_hand_the_latents_to_their_norms():
    z_q = torch.randn(2, 3, 2, 2)
    block = MiddleBlocks(8, attention=True, dropout=0.0, norm_groups=4, spatial_channels=3)
    assert block.attn_1 is not None
    seen = []
    for module in block.modules():
        if isinstance(module, SpatialNorm):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    block(torch.randn(2, 8, 4, 4), z_q)
    assert len(seen) == 5
    assert all(given is z_q for given in seen)


def test_downsample_pads_right_and_bottom_alone():
    block = shuffled(Downsample(3))
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    padded = torch.zeros(2, 3, 7, 5, dtype=torch.float64)
    padded[:, :, :6, :4] = x
    expected = torch.stack(
        [
            torch.einsum("bcpq,ocpq->bo", padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], block.conv.weight)
            for i in range(3)
            for j in range(2)
        ],
        dim=-1,
    ).view(2, 3, 3, 2)
    bias = parameters(block.conv)[1]
    torch.testing.assert_close(block(x), expected + bias[:, None, None], rtol=1e-11, atol=1e-12)


def test_upsample_repeats_each_position():
    block = shuffled(Upsample(3))
    x = torch.randn(2, 3, 2, 5, dtype=torch.float64)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(repeated, *parameters(block.conv), padding=1)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", [True, False])
def test_middle_blocks(attention):
    block = shuffled(MiddleBlocks(8, attention=attention, dropout=0.0, norm_groups=2))
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    h = block.block_1(x)
    h = block.attn_1(h) if block.attn_1 is not None else h
    assert torch.equal(block(x), block.block_2(h))
    assert (block.attn_1 is not None) == attention


@pytest.mark.parametrize(
    "block",
    [
        ResidualBlock(8, 12, dropout=0.0, norm_groups=4),
        AttentionBlock(8, norm_groups=4),
        Downsample(8),
        Upsample(8),
    ],
    ids=lambda block: type(block).__name__,
)
def test_channels_last_is_kept_and_changes_nothing(block):
    x = torch.randn(2, 8, 6, 4)
    expected = block(x)
    last = block.to(memory_format=CHANNELS_LAST)(x.contiguous(memory_format=CHANNELS_LAST))
    assert last.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_alone():
    block = ResidualBlock(8, 8, dropout=0.5, norm_groups=4)
    x = torch.randn(2, 8, 4, 4)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="GroupNorm: expected norm_groups to divide the 48 channels, got 32"):
        normalization(48, 32)
