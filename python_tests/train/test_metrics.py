"""vqdm_train.metrics: equal to scikit-image's numbers and to the formulas, whatever the batches."""

import itertools
import math

import numpy as np
import pytest
import torch
from skimage import data as skimage_data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqdm_train.metrics import ImageMetrics, psnr, ssim, to_luma


def pair(seed=0, size=24, channels=3):
    """A photograph's crop and a noisy copy, float32 [C, H, W] in [0, 1]."""
    rng = np.random.default_rng(seed)
    photo = skimage_data.astronaut()[100 : 100 + size, 150 : 150 + size, :channels].transpose(2, 0, 1)
    a = torch.from_numpy(photo.copy()).float() / 255
    noise = torch.from_numpy(rng.normal(0, 0.05, a.shape)).float()
    return a, (a + noise).clamp(0, 1)


def last(image):
    return image.double().numpy().transpose(1, 2, 0)


# --- values -----------------------------------------------------------------------------------------------------------


def test_rgb_equals_skimage():
    a, b = pair()
    assert psnr(a, b) == peak_signal_noise_ratio(last(a), last(b), data_range=1)
    assert ssim(a, b) == structural_similarity(last(a), last(b), data_range=1, channel_axis=2, win_size=7)


def test_luma_equals_skimage():
    a, b = pair()
    y_a, y_b = rgb2ycbcr(last(a))[..., 0], rgb2ycbcr(last(b))[..., 0]
    assert np.array_equal(to_luma(a), y_a)
    assert psnr(a, b, luma=True) == peak_signal_noise_ratio(y_a, y_b, data_range=255)
    assert ssim(a, b, luma=True) == structural_similarity(y_a, y_b, data_range=255, win_size=7)


def test_psnr_is_the_formula():
    a, b = pair()
    mse = (a.double() - b.double()).square().mean().item()
    assert psnr(a, b) == pytest.approx(-10 * math.log10(mse), rel=1e-12)
    grey = torch.full((3, 8, 8), 0.25)
    assert psnr(grey, grey + 0.5) == pytest.approx(20 * math.log10(2), rel=1e-12)


def test_luma_is_bt601():
    primaries = torch.eye(3)[:, :, None]  # [3, 3, 1]: column i is the i-th primary
    assert to_luma(primaries)[:, 0] == pytest.approx([16 + 65.481, 16 + 128.553, 16 + 24.966], abs=1e-12)
    assert to_luma(torch.zeros(3, 2, 2)).tolist() == [[16.0] * 2] * 2
    assert to_luma(torch.ones(3, 2, 2)) == pytest.approx(np.full((2, 2), 235.0), abs=1e-12)


def test_full_range_luma_would_be_lower_by_a_constant():
    a, b = pair()
    weights = np.array([65.481, 128.553, 24.966]) / 219
    full = peak_signal_noise_ratio(last(a) @ weights, last(b) @ weights, data_range=1)
    assert psnr(a, b, luma=True) - full == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)


def test_ssim_is_the_formula_in_a_single_window():
    """A 7 x 7 image has one window: SSIM from its means, and variances with divisor 48."""
    a, b = pair(size=7, channels=1)
    x, y = a.double().flatten().numpy(), b.double().flatten().numpy()
    covariance = np.cov(x, y)
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)) / (
        (x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
    )
    assert ssim(a, b) == pytest.approx(expected, rel=1e-9)


# --- properties -------------------------------------------------------------------------------------------------------


def batch(count=7):
    pairs = [pair(seed, 16) for seed in range(count)]
    return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])


def test_result_is_the_mean_of_single_images():
    originals, reconstructions = batch()
    metrics = ImageMetrics()
    metrics.update(originals, reconstructions)
    assert len(metrics) == 7
    result = metrics.result()
    assert list(result) == ["psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y", "sharpness"]
    for name, (function, luma) in zip(metrics.NAMES, itertools.product((psnr, ssim), (False, True)), strict=True):
        values = [function(a, b, luma=luma) for a, b in zip(originals, reconstructions, strict=True)]
        assert result[name] == math.fsum(values) / 7


@pytest.mark.parametrize("split", [(7,), (1,) * 7, (2, 5), (4, 1, 2)])
def test_result_has_the_same_bits_for_any_split_and_order(split):
    originals, reconstructions = batch()
    whole = ImageMetrics()
    whole.update(originals, reconstructions)
    parts = ImageMetrics()
    for a, b in reversed(list(zip(originals.split(split), reconstructions.split(split), strict=True))):
        parts.update(a, b)
    assert parts.result() == whole.result()


def test_other_numbers_of_channels_have_no_luma():
    images = torch.rand(2, 5, 16, 16, generator=torch.Generator().manual_seed(3))
    metrics = ImageMetrics()
    metrics.update(images, images.sqrt())
    result = metrics.result()
    assert (result["psnr_y"], result["ssim_y"]) == (None, None)
    mse = (images.double() - images.sqrt().double()).square().mean(dim=(1, 2, 3))
    assert result["psnr_rgb"] == pytest.approx((-10 * mse.log10()).mean().item())


def sharpness(original, reconstruction):
    metrics = ImageMetrics()
    metrics.update(original[None], reconstruction[None])
    return metrics.result()["sharpness"]


def test_sharpness_is_how_much_neighbours_differ():
    ramp = torch.linspace(0, 1, 16).expand(3, 16, 16)
    assert sharpness(ramp, ramp) == 1
    assert sharpness(ramp, 0.25 + ramp / 2) == pytest.approx(0.5)
    assert sharpness(ramp, ramp.transpose(1, 2)) == pytest.approx(1)
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    blurred = torch.nn.functional.avg_pool2d(noise, 3, 1, 1, count_include_pad=False)
    assert 0.1 < sharpness(noise, blurred) < 0.5
    assert math.isnan(sharpness(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)))


def test_numpy_and_float64_agree_with_torch():
    a, b = pair()
    assert psnr(a.numpy(), b.numpy()) == psnr(a, b) == psnr(a.double(), b.double())
    metrics = ImageMetrics()
    metrics.update(a[None].numpy(), b[None].numpy())
    assert metrics.result()["ssim_y"] == ssim(a, b, luma=True)


def test_symmetric():
    a, b = pair()
    assert psnr(a, b) == psnr(b, a)
    assert ssim(a, b) == pytest.approx(ssim(b, a), rel=1e-12)


# --- nasty ------------------------------------------------------------------------------------------------------------


def test_grey_counts_as_three_equal_channels():
    a, b = pair(channels=1)
    assert psnr(a, b) == pytest.approx(psnr(a.expand(3, -1, -1), b.expand(3, -1, -1)), rel=1e-12)
    assert ssim(a, b) == pytest.approx(ssim(a.expand(3, -1, -1), b.expand(3, -1, -1)), rel=1e-12)


def test_equal_images_have_infinite_psnr_and_ssim_one():
    a, _ = pair()
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)


def test_inputs_are_left_alone():
    a, b = pair()
    before = a.clone(), b.clone()
    psnr(a, b, luma=True)
    ssim(a.requires_grad_(), b)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


# --- bad --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, 255.0])
def test_values_outside_the_range_are_refused_and_nothing_is_added(value):
    originals, reconstructions = batch(2)
    reconstructions[1, 0, 0, 0] = value
    metrics = ImageMetrics()
    with pytest.raises(ValueError, match=r"ImageMetrics: expected values in \[0, 1\], got"):
        metrics.update(originals, reconstructions)
    assert len(metrics) == 0


def test_shapes_are_refused():
    a, b = pair()
    with pytest.raises(
        ValueError, match=r"psnr: expected two images of one shape, got \[3, 24, 24\] and \[3, 24, 23\]"
    ):
        psnr(a, b[:, :, :-1])
    with pytest.raises(ValueError, match=r"expected an image .* for its luma, got \[2, 24, 24\]"):
        ssim(a[:2], b[:2], luma=True)
    with pytest.raises(ValueError, match=r"expected original and reconstruction \[B, C, H, W\] of one shape"):
        ImageMetrics().update(a, b)
    with pytest.raises(ValueError, match=r"ssim: expected images of at least 7 x 7 pixels, got \[6, 24\]"):
        ssim(a[:, :6], b[:, :6])


def test_no_image_has_no_mean():
    with pytest.raises(ValueError, match="expected at least one image, got none"):
        ImageMetrics().result()
