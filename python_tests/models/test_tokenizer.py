"""ImageTokenizer: the parts put together, images checked, tokens independent of the batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqdm_cuda.models import Decoder, Encoder, ImageTokenizer
from vqdm_cuda.quantizers import MultiScaleQuantizer, VectorQuantizer, WassersteinQuantizer

SMALL: dict[str, Any] = {
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "latent_channels": 6,
    "norm_groups": 4,
}


def tokenizer(kind: str = "vector") -> ImageTokenizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(50, 6) if kind == "vector" else WassersteinQuantizer(50, 6)
    if kind == "multi_scale":
        return ImageTokenizer(Encoder(**SMALL), MultiScaleQuantizer(quantizer, (1, 2, 4)), Decoder(**SMALL))
    return ImageTokenizer(Encoder(**SMALL), quantizer, Decoder(**SMALL))


def images(B: int = 3, H: int = 8, W: int = 8) -> Tensor:
    return torch.rand(B, 3, H, W) * 2 - 1


def equal(a: Tensor | list[Tensor], b: Tensor | list[Tensor]) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(b, Tensor) and torch.equal(a, b)


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vector", "multi_scale"])
def test_the_forward_pass_is_that_of_the_parts(kind):
    model, x = tokenizer(kind).eval(), images()
    reconstruction, quantized = model(x)
    expected = model.quantizer(model.encoder(x))
    assert torch.equal(quantized.z_q, expected.z_q)
    assert equal(quantized.indices, expected.indices)
    assert torch.equal(reconstruction, model.decoder(expected.z_q))
    assert reconstruction.shape == x.shape
    again, quantized_again, terms = model(x, return_terms=True)
    assert torch.equal(again, reconstruction)
    assert torch.equal(quantized_again.loss, quantized.loss)
    assert {"commitment", "codebook"} <= set(terms)


@pytest.mark.parametrize("kind", ["vector", "multi_scale"])
def test_reconstruct_is_decode_of_encode_and_the_clamped_forward_pass(kind):
    model, x = tokenizer(kind).eval(), images()
    with torch.no_grad():
        model.get_parameter("decoder.conv_out.weight").mul_(30)  # so that there is something to clamp
    out = model.reconstruct(x)
    assert torch.equal(out, model.decode(model.encode(x)))
    assert torch.equal(out, model(x)[0].clamp(-1, 1))
    assert out.abs().max() == 1
    assert out.abs().min() < 1


def test_images_need_not_be_square():
    model = tokenizer()
    assert model.encode(images(2, 6, 10)).shape == (2, 3, 5)
    assert model.reconstruct(images(2, 6, 10)).shape == (2, 3, 6, 10)


@pytest.mark.parametrize("kind", ["vector", "multi_scale"])
def test_half_precision_models_and_autocast_run(kind):
    model = tokenizer(kind).eval()
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, quantized = model(images())
    assert quantized.loss.dtype == torch.float32
    assert torch.isfinite(reconstruction).all()
    assert model.bfloat16().reconstruct(images().bfloat16()).dtype == torch.bfloat16


# gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vector", "wasserstein", "multi_scale"])
def test_a_training_step_reaches_every_parameter(kind):
    model, x = tokenizer(kind), images()
    reconstruction, quantized = model(x)
    ((reconstruction - x).abs().mean() + quantized.loss).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_few_steps_lower_the_loss():
    model, x = tokenizer("multi_scale"), images()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        reconstruction, quantized = model(x)
        loss = (reconstruction - x).square().mean() + quantized.loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# properties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vector", "multi_scale"])
def test_tokens_taken_per_image_are_the_same_in_any_batch(kind):
    model, x = tokenizer(kind).eval(), images(7)
    tokens, order = model.encode(x, per_image=True), torch.randperm(7)
    for some in ([3], [6, 0], [], order.tolist()):
        part = model.encode(x[some], per_image=True)
        assert equal(part, [t[some] for t in tokens] if isinstance(tokens, list) else tokens[some])
    assert equal(model.encode(x.contiguous(memory_format=torch.channels_last), per_image=True), tokens)
    assert equal(
        model.encode(x[2:3], per_image=True), [t[2:3] for t in tokens] if isinstance(tokens, list) else tokens[2:3]
    )


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (2, 3, 8, 5), (2, 1, 8, 8), (3, 8, 8), (2, 3, 0, 8)])
def test_images_of_another_shape_are_refused(shape):
    model = tokenizer()
    for call in (model, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match=r"expected images \[B, 3, H, W\] with H and W multiples of 2, got"):
            call(torch.zeros(shape))


def test_a_multi_scale_tokenizer_names_the_size_it_takes():
    with pytest.raises(ValueError, match=r"ImageTokenizer: expected images \[B, 3, 8, 8\], got \[2, 3, 16, 16\]"):
        tokenizer("multi_scale")(images(2, 16, 16))


def test_images_must_be_floating_point():
    with pytest.raises(TypeError, match=r"images of a floating point type in \[-1, 1\], got torch\.uint8"):
        tokenizer().encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_indices_of_no_image_are_refused():
    with pytest.raises(ValueError, match=r"ImageTokenizer.decode: expected indices of images \[B, h, w\], got \[4\]"):
        tokenizer().decode(torch.zeros(4, dtype=torch.int64))


def test_parts_that_do_not_fit_are_refused():
    encoder, quantizer, decoder = Encoder(**SMALL), VectorQuantizer(9, 6), Decoder(**SMALL)
    with pytest.raises(ValueError, match=r"one latent dimension, got \[6, 5, 6\]"):
        ImageTokenizer(encoder, VectorQuantizer(9, 5), decoder)
    with pytest.raises(ValueError, match="equal factor, got 2 and 4"):
        ImageTokenizer(encoder, quantizer, Decoder(**(SMALL | {"channel_multipliers": (1, 2, 2)})))
    with pytest.raises(ValueError, match="equal in_channels, got 3 and 1"):
        ImageTokenizer(encoder, quantizer, Decoder(**SMALL, in_channels=1))
    with pytest.raises(TypeError, match="expected quantizer to be Quantizer, got Encoder"):
        ImageTokenizer(encoder, encoder, decoder)  # type: ignore[arg-type]
