"""Training crops, and the way from pixels to what the model sees."""

import itertools

import numpy as np
import pytest
import torch

from image_files import crop, folder_of, picture, rng, write
from vqdm_train.data import open_dataset
from vqdm_train.data.builtin import TRAIN_PHOTOS
from vqdm_train.data.crops import resize, to_tensor


def test_crops_are_windows_of_the_photograph_mirrored_half_of_the_time():
    images = open_dataset("builtin:photos", split="train", size=48, min_scale=1.0)
    photo = images.source.load(0)
    windows = np.lib.stride_tricks.sliding_window_view(photo, (48, 48), axis=(0, 1))  # [h, w, 3, 48, 48]
    corner: dict[bytes, list[tuple[int, int]]] = {}
    for y, x in itertools.product(range(windows.shape[0]), range(windows.shape[1])):
        corner.setdefault(photo[y, x : x + 48].tobytes(), []).append((y, x))
    mirrored = 0
    for seed in range(200):
        cut = crop(images, 0, rng(seed))
        for flip, candidate in ((0, cut), (1, cut[:, ::-1])):
            places = corner.get(np.ascontiguousarray(candidate[0]).tobytes(), [])
            if any(np.array_equal(photo[y : y + 48, x : x + 48], candidate) for y, x in places):
                mirrored += flip
                break
        else:
            pytest.fail("the crop is no window of the photograph")
    assert 65 <= mirrored <= 135  # five sigma of 200 fair coins


def test_mirror_false_leaves_left_and_right():
    """With one generator: half of the crops are those of mirror=True, the others mirrored back."""
    plain = open_dataset("builtin:photos", split="train", size=48, min_scale=1.0, mirror=False)
    mirroring = open_dataset("builtin:photos", split="train", size=48, min_scale=1.0)
    changed = 0
    for seed in range(40):
        cut, other = crop(plain, 0, rng(seed)), crop(mirroring, 0, rng(seed))
        if not np.array_equal(cut, other):
            assert np.array_equal(cut[:, ::-1], other)
            changed += 1
    assert 5 <= changed <= 35


def test_min_scale_shrinks_the_photograph():
    """A shrunken photograph has more change from pixel to pixel; min_scale = 1 leaves crops as they are."""
    brick = TRAIN_PHOTOS.index("brick.png")

    def roughness(min_scale):
        images = open_dataset("builtin:photos", split="train", size=32, min_scale=min_scale)
        crops = to_tensor([crop(images, brick, rng(seed)) for seed in range(40)])
        return crops.diff(dim=-1).abs().mean().item()

    assert roughness(0.25) > 1.2 * roughness(1.0)


def test_the_default_scale_varies_the_window():
    images = open_dataset("builtin:photos", split="train", size=32)
    windows = [images._window(300, rng(seed)) for seed in range(200)]
    assert min(windows) >= 32
    assert max(windows) <= 64
    assert len(set(windows)) > 20


def test_folder_windows_are_fractions_of_the_short_side(tmp_path):
    images = open_dataset(str(folder_of(tmp_path, 3)), split="train", size=16)
    windows = [images._window(1000, rng(seed)) for seed in range(200)]
    assert 800 <= min(windows) < 820
    assert 980 < max(windows) <= 1000


def test_small_images_are_enlarged_to_the_crop(tmp_path):
    write(tmp_path / "a.png", picture(9, 7))
    train = open_dataset(str(tmp_path), split="train", size=32)
    assert crop(train, 0, rng()).shape == (32, 32, 3)
    assert open_dataset(str(tmp_path), split="eval", size=32)[0].shape == (3, 32, 32)


def test_pixels_map_to_minus_one_and_one_exactly():
    values = to_tensor([np.array([[[0], [255]]], dtype=np.uint8)])
    assert values.tolist() == [[[[-1.0, 1.0]]]]
    every = to_tensor([np.arange(256, dtype=np.uint8).reshape(16, 16, 1)])
    assert torch.equal(((every + 1) * 127.5).round().to(torch.uint8).flatten(), torch.arange(256, dtype=torch.uint8))


def test_grey_is_one_channel_or_three_equal_ones(tmp_path):
    write(tmp_path / "grey.png", picture(20, 20, 1))
    three = open_dataset(str(tmp_path), split="eval", size=20)[0]
    one = open_dataset(str(tmp_path), split="eval", size=20, in_channels=1)[0]
    assert one.shape == (1, 20, 20)
    assert torch.equal(three, one.expand(3, -1, -1))


def test_sixteen_bits_map_to_minus_one_and_one_and_stay_apart():
    every = to_tensor([np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)]).flatten()
    assert (every[0], every[-1]) == (-1.0, 1.0)
    assert torch.equal(((every.double() + 1) * 32767.5).round(), torch.arange(65536, dtype=torch.float64))


def test_a_batch_may_mix_8_and_16_bits():
    grey = np.full((2, 2, 1), 51, dtype=np.uint8)
    assert torch.allclose(*to_tensor([grey, grey.astype(np.uint16) * 257]), atol=1e-6)


def test_sixteen_bits_are_resized_without_falling_to_8():
    """A ramp finer than 8 bits: enlarged and shrunk it stays the ramp, where 8 bits would leave steps of 257."""
    ramp = np.tile(np.arange(30_000, 30_256, dtype=np.uint16), (64, 1))[:, :, None]
    for height, width in ((128, 512), (32, 128)):
        resized = resize(ramp, height, width)
        assert (resized.shape, resized.dtype) == ((height, width, 1), np.uint16)
        expected = 30_000 + (np.arange(width) + 0.5) * 256 / width - 0.5
        inside = slice(8, -8)  # at the ends the filter sees the edge
        assert np.abs(resized[height // 2, inside, 0] - expected[inside]).max() <= 1


def test_sixteen_bit_resizing_clips_what_overshoots():
    edge = np.repeat(np.array([0, 65535], dtype=np.uint16), 8)[None, :, None].repeat(16, axis=0)
    resized = resize(edge, 64, 64)
    assert (resized[:, :16] < 1000).all()
    assert (resized[:, -16:] > 64_535).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_channels_are_resized_each_alone(channels):
    pixels = rng(channels).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    resized = resize(pixels, 10, 12)
    assert resized.shape == (10, 12, channels)
    for c in range(channels):
        assert np.array_equal(resized[:, :, c : c + 1], resize(pixels[:, :, c : c + 1], 10, 12))
