"""What a run does about files that cannot be read: it names, replaces and counts them, and stops before harm."""

import numpy as np
import pytest
import torch

from image_files import broken, crop, folder_of, picture, rng, write
from vqdm_train.data import (
    CorruptDataError,
    CorruptImageError,
    DataConfig,
    TrainStream,
    open_dataset,
    open_eval,
    open_train,
    prefetch,
)
from vqdm_train.data.images import Augmentation, TrainImages
from vqdm_train.data.survey import survey


def test_corrupt_files_are_replaced_counted_and_named(tmp_path):
    folder_of(tmp_path, 12)
    (tmp_path / "0003.png").write_bytes(b"")
    (tmp_path / "0004.png").write_text("<html>")
    images = open_dataset(str(tmp_path), split="train", size=16, max_corrupt=0.5)
    first = crop(images, 3, rng(9))
    assert images.corrupt == {"0003.png": "the file is empty", "0004.png": "not a picture of a known format"}
    assert np.array_equal(first, crop(images, 5, rng(9)))  # the next good one, with the draws it would have had anyway
    assert np.array_equal(first, crop(images, 3, rng(9)))  # and the same once the corrupt ones are known
    (tmp_path / "0011.png").write_bytes(b"")
    last = open_dataset(str(tmp_path), split="train", size=16, max_corrupt=0.5)
    assert np.array_equal(crop(last, 11, rng(2)), crop(last, 0, rng(2)))


def test_batches_with_corrupt_files_do_not_depend_on_history(tmp_path):
    folder_of(tmp_path, 8)
    (tmp_path / "0002.png").write_bytes(b"")

    def stream():
        return TrainStream(open_dataset(str(tmp_path), split="train", size=16, max_corrupt=0.2), 6, 0)

    whole = stream()
    batches = [whole.batch(step) for step in range(4)]
    assert whole.images.corrupt
    assert torch.equal(stream().batch(3), batches[3])


def test_training_stops_above_a_thousandth(tmp_path):
    """1 in 1000 is passed over; the second of 1000 stops the run and both are named."""
    first = write(tmp_path / "00000.ppm", picture(4, 4))
    content = first.read_bytes()
    for i in range(1, 1000):
        (tmp_path / f"{i:05d}.ppm").write_bytes(content)
    (tmp_path / "00100.ppm").write_bytes(content[:-5])
    images = open_dataset(str(tmp_path), split="train", size=4)
    crop(images, 100, rng())
    assert list(images.corrupt) == ["00100.ppm"]
    (tmp_path / "00200.ppm").write_bytes(b"")
    with pytest.raises(
        CorruptDataError,
        match=r"at most 0.10% corrupt files of 1000, got 2 among 4 looked at \(00100.ppm: .*; 00200.ppm: ",
    ):
        crop(images, 200, rng())


def test_all_corrupt_ends(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"")
    images = open_dataset(str(tmp_path), split="train", size=8, max_corrupt=1.0)
    with pytest.raises(CorruptDataError, match="3 corrupt ones"):
        crop(images, 0, rng())
    assert len(TrainStream(images, 3, 0).names(0)) == 3  # for the report of a run that ends so


def test_evaluation_is_strict(tmp_path):
    folder_of(tmp_path, 3)
    (tmp_path / "0001.png").write_bytes(b"")
    images = open_dataset(str(tmp_path), split="eval", size=16)
    assert len(images) == 3
    images[0]
    with pytest.raises(CorruptImageError, match=r"0001\.png"):
        images[1]


# --- a data set with 0, 0.05 % and 1 % bad files ----------------------------------------------------------------------


def mostly_good(root, count, bad):
    """`count` files, of which `bad` (of the kinds in turn) cannot be read; returns the names of those."""
    root.mkdir()
    content = write(root / "00000.ppm", picture(4, 4)).read_bytes()
    kinds = sorted(broken(root.parent / "kinds"))
    names = {}
    for i in range(bad):
        kind = kinds[i % len(kinds)]
        names[(i * 997 + 13) % count] = kind
    for i in range(count):
        kind = names.get(i)
        path = root / (f"{i:05d}.ppm" if kind is None else f"{i:05d}{kind[kind.index('.') :]}")
        path.write_bytes(content if kind is None else (root.parent / "kinds" / kind).read_bytes())
    return sorted(path.name for path in root.iterdir() if path.suffix != ".ppm" or path.read_bytes() != content)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_data_set_with_few_bad_files_trains_with_them_named(tmp_path, bad):
    """0 and 0.05 % of 2,000: known before the first step, and no reason to stop in an epoch."""
    names = mostly_good(tmp_path / "data", 2000, bad)
    images = open_train(DataConfig(path=str(tmp_path / "data"), image_size=8))
    assert sorted(images.corrupt) == names
    assert len(names) == bad
    assert images.description.endswith(f"; 2000 looked at, {bad} of them corrupt")
    stream = TrainStream(images, 100, 0)
    assert sum(len(batch) for batch in prefetch(stream, range(20))) == 2000
    assert sorted(images.corrupt) == names


def test_a_data_set_with_one_percent_bad_files_stops_before_it_trains(tmp_path):
    """20 of 2,000, of every kind of damage."""
    names = mostly_good(tmp_path / "data", 2000, 20)
    assert len(names) == 20
    with pytest.raises(CorruptDataError, match=r"at most 0.10% corrupt files of 2000, got 3 among \d+ looked at"):
        open_train(DataConfig(path=str(tmp_path / "data"), image_size=8))


class Synthetic:
    """A source of N images of which every 100th cannot be read."""

    description, in_channels, shared = "synthetic", 1, True

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def name(self, index):
        return str(index)

    def load(self, index):
        if index % 100 == 7:
            raise CorruptImageError(str(index), "bad")
        return np.zeros((4, 4, 1), dtype=np.uint8)


def test_one_percent_of_a_million_stops_within_two_thousand_files():
    """A thousand bad files would be met only after 100,000; that they are too many shows long before."""
    images = TrainImages(Synthetic(10**6), 4, Augmentation(window="file", min_scale=1.0, mirror=False))
    with pytest.raises(CorruptDataError, match="among"):
        list(prefetch(TrainStream(images, 100, 0), range(20)))
    sampled = TrainImages(Synthetic(10**6), 4, Augmentation(window="file", min_scale=1.0, mirror=False))
    with pytest.raises(CorruptDataError, match="corrupt files of 1000000"):
        survey(sampled)


@pytest.mark.parametrize("workers", [1, 3])
def test_counts_and_stops_do_not_depend_on_threads(workers):
    def stream():
        augmentation = Augmentation(window="file", min_scale=1.0, mirror=False)
        return TrainStream(TrainImages(Synthetic(5000), 4, augmentation, max_corrupt=0.005), 50, 3)

    alone, threaded = stream(), stream()
    batches = prefetch(threaded, range(100), workers=workers)
    step = 0
    while True:
        try:
            alone.batch(step)
        except CorruptDataError as error:
            stop = str(error)
            break
        next(batches)
        assert list(threaded.images.corrupt) == list(alone.images.corrupt)
        step += 1
    with pytest.raises(CorruptDataError) as same:
        next(batches)
    assert str(same.value) == stop
    assert step > 3


def test_names_are_those_of_the_replacements(tmp_path):
    folder_of(tmp_path, 4)
    (tmp_path / "0002.png").write_bytes(b"")
    images = open_dataset(str(tmp_path), split="train", size=16, max_corrupt=0.5)
    stream = TrainStream(images, 4, 0)
    assert sorted(stream.names(0)) == ["0000.png", "0001.png", "0002.png", "0003.png"]
    stream.batch(0)
    assert sorted(stream.names(0)) == ["0000.png", "0001.png", "0003.png", "0003.png"]


def test_where_images_serve_both_a_corrupt_one_is_replaced_in_evaluation_too(tmp_path, monkeypatch):
    """Also one that the first look did not meet: the run need not end at it."""
    folder_of(tmp_path, 6)
    (tmp_path / "0004.png").write_bytes(b"")
    monkeypatch.setattr("vqdm_train.data.survey._MAX_FILES", 2)
    data = DataConfig(path=str(tmp_path), image_size=16, max_corrupt=0.5)
    images = open_train(data)
    assert not images.corrupt
    held_out = open_eval(data, images)
    assert len(held_out) == 6
    assert torch.equal(held_out[4], held_out[5])
    assert list(images.corrupt) == ["0004.png"]
    held_out.thin(3)
    assert [held_out.name(i) for i in range(len(held_out))] == ["0000.png", "0002.png", "0005.png"]


def test_a_held_out_split_is_strict(tmp_path):
    """Also where a file of it is named like a corrupt one of training."""
    for split in ("train", "val"):
        folder_of(tmp_path / split, 4)
        (tmp_path / split / "0002.png").write_bytes(b"")
    data = DataConfig(path=str(tmp_path), image_size=16, max_corrupt=0.5)
    held_out = open_eval(data, open_train(data))
    assert len(held_out) == 4
    with pytest.raises(CorruptImageError, match=r"0002\.png"):
        held_out[2]


def test_eval_path_names_the_held_out_images(tmp_path):
    folder_of(tmp_path / "a", 3)
    folder_of(tmp_path / "b", 2)
    data = DataConfig(path=str(tmp_path / "a"), eval_path=str(tmp_path / "b"), image_size=16)
    assert (len(open_train(data)), len(open_eval(data))) == (3, 2)


def test_the_first_look_ends_in_time_when_files_are_slow(monkeypatch):
    """A clock that goes on by a second at each file: about five of them are looked at, not a part of many."""
    now = 0.0

    class Slow(Synthetic):
        def load(self, index):
            nonlocal now
            now += 1.0
            return np.zeros((4, 4, 3), dtype=np.uint8)

    monkeypatch.setattr("vqdm_train.data.survey.time.monotonic", lambda: now)
    images = TrainImages(Slow(1000), 4, Augmentation(window="file", min_scale=1.0, mirror=False))
    survey(images)
    assert "; 6 looked at, 0 of them corrupt" in images.description
