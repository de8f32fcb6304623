"""Folders and lists of images."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from image_files import folder_of, picture, write
from vqdm_train.data import CorruptImageError, check_data, open_dataset
from vqdm_train.data.crops import to_tensor
from vqdm_train.data.files import list_files


def test_folder_is_nested_sorted_and_takes_known_extensions(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "a/x.webp", "c.bmp", "d.tif", "e.tiff", "f.ppm", "g.jpeg"):
        write(tmp_path / name, picture())
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"junk")
    (tmp_path / ".cache").mkdir()
    write(tmp_path / ".cache/h.png", picture())
    images = open_dataset(str(tmp_path), split="eval", size=16)
    names = [images.name(i) for i in range(len(images))]
    assert names == ["a/x.webp", "b/10.JPG", "b/2.png", "c.bmp", "d.tif", "e.tiff", "f.ppm", "g.jpeg"]
    assert all(images[i].shape == (3, 16, 16) for i in range(len(images)))


def test_linked_folders_are_followed_once_and_loops_end(tmp_path):
    write(tmp_path / "store/1.png", picture())
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "store")
    (root / "again").symlink_to(tmp_path / "store")
    (root / "loop").symlink_to(root)
    assert [path.relative_to(root).as_posix() for path in list_files(root)] == ["again/1.png"]


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_folder_with_train_and_val_is_split_by_them(tmp_path, held_out):
    folder_of(tmp_path / "train", 3)
    folder_of(tmp_path / held_out, 2)
    train = open_dataset(str(tmp_path), split="train", size=16)
    held = open_dataset(str(tmp_path), split="eval", size=16)
    assert (len(train), len(held)) == (3, 2)
    assert "subfolder train" in train.description
    assert f"subfolder {held_out}" in held.description


def test_folder_without_both_serves_both(tmp_path):
    folder_of(tmp_path / "train", 3)
    train = open_dataset(str(tmp_path), split="train", size=16)
    held = open_dataset(str(tmp_path), split="eval", size=16)
    assert (len(train), len(held)) == (3, 3)
    assert "all images serve training and evaluation" in held.description


def test_folder_eval_is_short_side_then_centre(tmp_path):
    pixels = picture(60, 101)
    write(tmp_path / "a.png", pixels)
    got = open_dataset(str(tmp_path), split="eval", size=32)[0]
    resized = np.asarray(Image.fromarray(pixels).resize((int(32 * 101 / 60), 32), Image.Resampling.BICUBIC))
    left = round((resized.shape[1] - 32) / 2)
    assert torch.equal(got, to_tensor([resized[:, left : left + 32]])[0])


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(ValueError, match="expected a folder with images"):
        open_dataset(str(tmp_path), split="train", size=16)
    with pytest.raises(ValueError, match=r"expected builtin:photos, .* got"):
        check_data(str(tmp_path / "nowhere"))


def test_arrays_count_where_there_are_no_pictures(tmp_path):
    for folder in ("arrays", "both"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", picture(20, 20))
    write(tmp_path / "both/b.png", picture(20, 20))
    names = {
        folder: [images.name(i) for i in range(len(images))]
        for folder in ("arrays", "both")
        for images in [open_dataset(str(tmp_path / folder), split="eval", size=16)]
    }
    assert names == {"arrays": ["a.npy"], "both": ["b.png"]}


def test_a_folder_of_tar_files_says_how_to_name_them(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got none in .*; its 1 tar files are .*/\*\.tar$"):
        open_dataset(str(tmp_path), split="train", size=16)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_names_files_relative_to_itself_in_its_order(tmp_path):
    folder_of(tmp_path / "images", 3)
    elsewhere = write(tmp_path / "elsewhere.png", picture(seed=9))
    (tmp_path / "lists").mkdir()
    lines = ["../images/0002.png", "", "  ../images/0000.png  ", str(elsewhere), "../images/0002.png"]
    (tmp_path / "lists/train.txt").write_text("\n".join(lines))
    images = open_dataset(str(tmp_path / "lists/train.txt"), split="eval", size=16)
    assert [images.name(i) for i in range(len(images))] == [
        *("../images/0002.png", "../images/0000.png", str(elsewhere), "../images/0002.png")
    ]
    assert torch.equal(images[0], images[3])
    folder = open_dataset(str(tmp_path / "images"), split="eval", size=16)
    assert torch.equal(images[1], folder[0])
    assert "4 images" in images.description


def test_missing_files_of_a_list_are_named(tmp_path):
    write(tmp_path / "a.png", picture())
    (tmp_path / "train.txt").write_text("a.png\nb.png\nsub/c.png\n")
    with pytest.raises(ValueError, match=r"got 2 that are missing: .*/b\.png, .*/sub/c\.png$"):
        open_dataset(str(tmp_path / "train.txt"), split="train", size=16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "one path per line, got an empty list"),
        (b"\xff\xfe\x00", "a list of paths in UTF-8, got other bytes"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path, content, message):
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path / "train.txt"), split="train", size=16)


def test_a_pipe_among_the_files_is_a_corrupt_one_and_nobody_waits_for_it(tmp_path):
    write(tmp_path / "a.png", picture())
    os.mkfifo(tmp_path / "b.png")
    images = open_dataset(str(tmp_path), split="eval", size=16)
    assert images[0].shape == (3, 16, 16)
    with pytest.raises(CorruptImageError, match=r"b\.png: a pipe, a device or another thing that is no regular file"):
        images[1]
    errors = [finding for finding in check_data(str(tmp_path)) if finding.severity == "error"]
    assert [finding.path for finding in errors] == ["b.png"]
