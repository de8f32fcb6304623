"""vqdm_train.pictures: the grid of samples, pixel for pixel, of any number of channels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqdm_train.pictures import grid_of, save_image


def test_rows_are_original_reconstruction_and_four_times_the_difference() -> None:
    originals = torch.tensor([-1.0, 0.0])[:, None, None, None].expand(2, 3, 128, 128)
    reconstructions = torch.tensor([-0.9, -3.0])[:, None, None, None].expand(2, 3, 128, 128)  # clamped to -1
    grid = np.asarray(grid_of(originals, reconstructions))
    assert grid.shape == (3 * 128, 2 * 128, 3)
    cells = grid[64::128, 64::128, 0]
    # 127.5 (value + 1), rounded half to even; the differences 0.05 and -0.5 of the range, four times, around grey
    assert cells.tolist() == [[0, 128], [13, 0], [153, 0]]
    assert (grid[256:, :128] == 153).all()


@pytest.mark.parametrize(("size", "scale"), [(16, 8), (48, 2), (64, 2), (256, 1)])
def test_small_images_are_enlarged(size: int, scale: int) -> None:
    images = torch.rand(2, 3, size, size) * 2 - 1
    picture = grid_of(images, images)
    assert picture.size == (2 * size * scale, 3 * size * scale)
    expected = ((images[1] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    enlarged = expected.repeat(scale, axis=0).repeat(scale, axis=1)
    assert (np.asarray(picture)[: size * scale, size * scale :] == enlarged).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB"), (7, "RGB")])
def test_any_number_of_channels(channels: int, mode: str) -> None:
    images = torch.rand(2, channels, 128, 128) * 2 - 1
    picture = grid_of(images, -images)
    assert picture.mode == mode
    shown = torch.from_numpy(np.array(picture)).view(384, 256, -1).permute(2, 0, 1)
    expected = ((images[0, : len(shown)] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(shown[:, :128, :128], expected)


def test_save_image_leaves_the_file_alone(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "x.png", torch.zeros(3, 4, 6))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.png"]
    with Image.open(tmp_path / "a" / "x.png") as picture:
        assert picture.size == (6, 4)
