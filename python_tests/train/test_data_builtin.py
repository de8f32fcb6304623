"""The built-in data sets: splits, pixels, crops for evaluation, shares in training."""

from collections import Counter

import numpy as np
import pytest
import torch
from skimage import data as skimage_data
from sklearn.datasets import load_digits

from image_files import crop, rng
from vqdm_train.data import open_dataset
from vqdm_train.data.builtin import EVAL_PHOTOS, TRAIN_PHOTOS
from vqdm_train.data.crops import grid_positions


def test_photos_train_on_everything_but_the_held_out_ones():
    images = open_dataset("builtin:photos", split="train", size=32)
    names = [images.name(i) for i in range(len(images))]
    assert names == [name.rsplit(".")[0] for name in TRAIN_PHOTOS]
    assert not {"chelsea", "coffee"} & set(names)
    assert {"motorcycle_left", "motorcycle_right"} <= set(names)
    assert set(EVAL_PHOTOS) == {"chelsea.png", "coffee.png"}


@pytest.mark.parametrize(("index", "reference"), [(0, "astronaut"), (2, "camera")])
def test_photos_are_the_pixels_that_skimage_reads(index, reference):
    expected = getattr(skimage_data, reference)()
    if expected.ndim == 2:
        expected = np.repeat(expected[:, :, None], 3, axis=2)
    images = open_dataset("builtin:photos", split="train", size=32)
    assert np.array_equal(images.source.load(index), expected)


def test_eval_photos_are_all_grid_crops_at_four_shifts():
    size = 64
    images = open_dataset("builtin:photos", split="eval", size=size)
    expected, names = [], []
    for name, photo in (("chelsea", skimage_data.chelsea()), ("coffee", skimage_data.coffee())):
        for shift in ((0, 0), (0, 32), (32, 0), (32, 32)):
            for top in range(shift[0], photo.shape[0] - size + 1, size):
                for left in range(shift[1], photo.shape[1] - size + 1, size):
                    expected.append(photo[top : top + size, left : left + size])
                    names.append(f"{name}-{top}-{left}")
    assert len(images) == len(expected) == 291
    assert [images.name(i) for i in range(len(images))] == names
    got = torch.stack([images[i] for i in range(len(images))])
    assert got.shape == (291, 3, 64, 64)
    pixels = ((got + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels, np.stack(expected))


def test_eval_crops_of_one_shift_do_not_overlap():
    positions = grid_positions(300, 451, 64, (32, 32))
    covered = Counter(
        (y, x) for top, left in positions for y in range(top, top + 64, 16) for x in range(left, left + 64, 16)
    )
    assert len(positions) == 4 * 6
    assert set(covered.values()) == {1}


def test_eval_photos_smaller_than_the_crop_are_enlarged():
    images = open_dataset("builtin:photos", split="eval", size=448)
    # chelsea 300 x 451 becomes 448 x 673, coffee 400 x 600 becomes 448 x 672; only shift 0 and (0, 224) fit.
    assert [images.name(i) for i in range(len(images))] == [
        "chelsea-0-0",
        "chelsea-0-224",
        "coffee-0-0",
        "coffee-0-224",
    ]
    assert images[0].shape == (3, 448, 448)


def test_photo_shares_grow_with_pixels_up_to_a_bound():
    images = open_dataset("builtin:photos", split="train", size=32)
    generator = rng(3)
    drawn = Counter(images.name(images.sample(generator)) for _ in range(20000))
    pixels = {images.name(i): images.source.load(i)[:, :, 0].size for i in range(len(images))}
    weights = {name: min(count, 512 * 512) for name, count in pixels.items()}
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        five_sigma = 5 * np.sqrt(share * (1 - share) / 20000)
        assert abs(drawn[name] / 20000 - share) < five_sigma


def test_digits_hold_out_the_last_297():
    train = open_dataset("builtin:digits", split="train", size=16, in_channels=1)
    held_out = open_dataset("builtin:digits", split="eval", size=8, in_channels=1)
    assert (len(train), len(held_out)) == (1500, 297)
    assert held_out.name(0) == "digit-1500"
    assert held_out.name(296) == "digit-1796"
    expected = np.rint(load_digits().images[1500:] * 255 / 16)
    got = torch.stack([held_out[i] for i in range(297)])
    assert np.array_equal(((got[:, 0] + 1) * 127.5).round().numpy(), expected)


def test_digits_are_enlarged_whole_and_never_mirrored():
    images = open_dataset("builtin:digits", split="train", size=32)
    crops = [crop(images, 7, rng(seed)) for seed in range(8)]
    assert crops[0].shape == (32, 32, 3)
    assert all(np.array_equal(other, crops[0]) for other in crops)
    assert np.array_equal(crops[0][:, :, 0], crops[0][:, :, 2])
