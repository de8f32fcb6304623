"""The small autoencoder: the layers of OptVQ's Table 4, one by one, and a tokenizer made of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqdm_cuda.models import Decoder, ImageTokenizer, SmallDecoder, SmallEncoder
from vqdm_cuda.quantizers import MultiHeadQuantizer, SinkhornQuantizer

# Kernel, channels, stride, padding, and whether a relu follows.
ENCODER = [(3, 16, 1, 1, 1), (2, 16, 2, 0, 0), (3, 16, 1, 1, 1), (2, 16, 2, 0, 0), (3, 32, 1, 1, 1), (3, 32, 1, 1, 0)]
DECODER = [(3, 32, 1, 1, 1), (2, 16, 2, 0, 0), (3, 16, 1, 1, 1), (2, 16, 2, 0, 0), (3, 16, 1, 1, 1), (3, 3, 1, 1, 1)]


def run(layers: list[nn.Module], table: list[tuple[int, int, int, int, int]], x: Tensor) -> Tensor:
    """The table's layers with the module's weights."""
    for layer, (kernel, channels, stride, padding, relu) in zip(layers, table, strict=True):
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        assert weight.shape[2:] == (kernel, kernel)
        assert isinstance(bias, Tensor)
        convolve = nn.functional.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else nn.functional.conv2d
        x = convolve(x, weight, bias, stride=stride, padding=padding)
        assert x.shape[1] == channels
        x = x.relu() if relu else x
    return x


def tokenizer(channels: int = 1) -> ImageTokenizer:
    torch.manual_seed(0)
    quantizer = MultiHeadQuantizer(SinkhornQuantizer(32, 2), 4)
    return ImageTokenizer(SmallEncoder(channels, 8), quantizer, SmallDecoder(channels, 8))


def test_the_layers_are_those_of_the_table():
    torch.manual_seed(0)
    encoder, decoder = SmallEncoder(3, 8), SmallDecoder(3, 8)
    x, z = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 8, 8, 8)
    *layers, connector = encoder.children()
    torch.testing.assert_close(encoder(x), connector(run(layers, ENCODER, (x + 1) / 2)))
    connector, *layers = decoder.children()
    torch.testing.assert_close(decoder(z), 2 * run(layers, DECODER, connector(z)) - 1)
    assert encoder(x).shape == (2, 8, 8, 8)
    assert decoder(z).shape == (2, 3, 32, 32)
    assert decoder(z).min() >= -1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_tokenizer_with_heads_trains_encodes_and_comes_back(channels, tmp_path: Path):
    model, x = tokenizer(channels), torch.rand(5, channels, 16, 24) * 2 - 1
    reconstruction, quantized = model(x)
    ((reconstruction - x).square().mean() + quantized.loss).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    model.eval().save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.config == model.config
    tokens = model.encode(x)
    assert tokens.shape == (5, 4, 6, 4)
    assert torch.equal(loaded.encode(x), tokens)
    assert torch.equal(loaded.decode(tokens), model.reconstruct(x))
    assert torch.equal(model.encode(x, per_image=True)[2:3], model.encode(x[2:3], per_image=True))
    assert (model.factor, model.in_channels) == (4, channels)
    assert model.bfloat16().reconstruct(x.bfloat16()).dtype == torch.bfloat16


def test_a_fresh_decoder_makes_grey_pictures_that_can_learn():
    torch.manual_seed(0)
    decoder = SmallDecoder(1, 8)
    z = torch.randn(4, 8, 4, 4, requires_grad=True)
    pictures = decoder(z)
    assert pictures.abs().max() < 0.9
    pictures.sum().backward()
    assert z.grad is not None
    assert (z.grad.abs().amax((1, 2, 3)) > 0).all()


def test_bad():
    with pytest.raises(ValueError, match="SmallEncoder: expected in_channels of at least 1, got 0"):
        SmallEncoder(0)
    with pytest.raises(ValueError, match="SmallDecoder: expected latent_channels of at least 1, got 0"):
        SmallDecoder(1, 0)
    with pytest.raises(ValueError, match=r"images \[B, 1, H, W\] with H and W multiples of 4, got \[1, 1, 6, 8\]"):
        tokenizer()(torch.zeros(1, 1, 6, 8))
    other = Decoder(1, 8, (1, 1), 1, 8, norm_groups=4)
    with pytest.raises(ValueError, match="equal factor, got 4 and 2"):
        ImageTokenizer(SmallEncoder(1, 8), SinkhornQuantizer(9, 8), other)
    with pytest.raises(TypeError, match="expected encoder to be EncoderNetwork, got SmallDecoder"):
        ImageTokenizer(SmallDecoder(), SinkhornQuantizer(9, 8), SmallDecoder())  # type: ignore[arg-type]
