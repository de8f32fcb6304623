"""Activation checkpointing: the same gradients to the bit, and less to remember."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqdm_cuda.models import Decoder, Encoder, ImageTokenizer, ViTDecoder, ViTEncoder
from vqdm_cuda.quantizers import VectorQuantizer

VQGAN: dict[str, Any] = {
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "latent_channels": 6,
    "norm_groups": 4,
    "dropout": 0.2,  # must draw the same numbers again
}
VIT: dict[str, Any] = {"latent_channels": 6, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 24}


def tokenizer(network: str) -> ImageTokenizer:
    torch.manual_seed(0)
    if network == "vit":
        return ImageTokenizer(ViTEncoder(**VIT), VectorQuantizer(50, 6), ViTDecoder(**VIT))
    decoder = Decoder(**VQGAN, spatial_norm=network == "spatial norm")
    return ImageTokenizer(Encoder(**VQGAN), VectorQuantizer(50, 6), decoder)


def saved_bytes_and_gradients(model: ImageTokenizer, x: Tensor) -> tuple[int, dict[str, Tensor]]:
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        reconstruction, quantized = model(x)
        loss = (reconstruction - x).abs().mean() + quantized.loss
    remembered = sum(saved.values())
    loss.backward()
    return remembered, {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("network", ["vqgan", "spatial norm", "vit"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_to_the_bit_and_less_is_remembered(network, autocast):
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    model, again = tokenizer(network), tokenizer(network)
    again.checkpoint_activations()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, expected = saved_bytes_and_gradients(model, x)
        less, gradients = saved_bytes_and_gradients(again, x)
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert less < 0.6 * plain


def test_it_can_be_undone_and_is_not_saved(tmp_path):
    x = torch.rand(1, 3, 8, 8)
    model = tokenizer("vqgan")
    plain, _ = saved_bytes_and_gradients(model, x)
    model.checkpoint_activations()
    assert saved_bytes_and_gradients(model, x)[0] < plain
    model.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path).train()
    assert saved_bytes_and_gradients(loaded, x)[0] == plain
    model.checkpoint_activations(False)
    assert saved_bytes_and_gradients(model, x)[0] == plain
