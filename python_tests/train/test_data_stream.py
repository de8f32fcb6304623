"""Training batches: a function of (seed, step), each image once in an epoch, the same over ranks and threads."""

import gc
import itertools
import threading

import numpy as np
import pytest
import torch

from image_files import folder_of, write
from vqdm_train.data import TrainStream, open_dataset, prefetch
from vqdm_train.data.order import EpochOrder


def test_batches_are_a_function_of_seed_and_step():
    def stream(seed):
        return TrainStream(open_dataset("builtin:photos", split="train", size=24), 8, seed)

    first = stream(5)
    batches = [first.batch(step) for step in range(4)]
    assert batches[0].shape == (8, 3, 24, 24)
    assert batches[0].is_contiguous()
    assert batches[0].dtype == torch.float32
    again = stream(5)
    assert all(torch.equal(again.batch(step), batches[step]) for step in (3, 1, 0, 2))
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(stream(6).batch(0), batches[0])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_see_the_global_batch(world_size):
    images = open_dataset("builtin:digits", split="train", size=8)
    whole = TrainStream(images, 8, 1).batch(3)
    parts = [TrainStream(images, 8, 1, rank=r, world_size=world_size).batch(3) for r in range(world_size)]
    assert torch.equal(torch.cat(parts), whole)


def test_prefetch_gives_the_same_batches_in_order():
    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 4, 0)
    batches = list(prefetch(stream, range(5, 17)))
    assert len(batches) == 12
    assert all(torch.equal(batch, stream.batch(5 + i)) for i, batch in enumerate(batches))


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vqdm-data")]


def test_prefetch_ends_its_threads_when_left_early():
    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 4, 0)
    batches = prefetch(stream, itertools.count())
    next(batches)
    assert data_threads()
    batches.close()
    assert not data_threads()
    batches = prefetch(stream, itertools.count())
    next(batches)
    del batches
    gc.collect()
    assert not data_threads()


def test_prefetch_raises_at_the_batch_that_failed():
    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 4, 0)
    batches = prefetch(stream, [0, 1, -1, 3])  # numpy refuses the negative step
    next(batches)
    next(batches)
    with pytest.raises(ValueError, match="non-negative"):
        next(batches)
    assert not data_threads()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "expected batch_size a positive multiple of world_size 1, got 0"),
        (
            {"batch_size": 6, "rank": 0, "world_size": 4},
            "expected batch_size a positive multiple of world_size 4, got 6",
        ),
        (
            {"batch_size": 12, "world_size": 2, "accumulate": 4},
            "expected batch_size a positive multiple of world_size 2 times accumulate 4, got 12",
        ),
        ({"accumulate": 0}, "expected accumulate >= 1, got 0"),
        ({"rank": 2, "world_size": 2}, "expected rank in 0 ... world_size - 1, got 2 of 2"),
        ({"seed": -1}, "expected seed >= 0, got -1"),
    ],
)
def test_bad_streams_are_named(options, message):
    images = open_dataset("builtin:digits", split="train", size=8)
    with pytest.raises(ValueError, match=message):
        TrainStream(images, **({"batch_size": 4, "seed": 0} | options))


def test_a_micro_batch_that_does_not_exist_is_named():
    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 4, 0, accumulate=2)
    with pytest.raises(ValueError, match=r"expected micro in 0 \.\.\. 1, got 2"):
        stream.batch(0, 2)


# --- properties: epochs, micro-batches, threads -----------------------------------------------------------------------


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 3)])
def test_each_image_comes_once_in_an_epoch(tmp_path, world_size, accumulate):
    """7 images, batches of 12: epochs end inside batches, and all ranks and micro-batches together lose nothing."""
    images = open_dataset(str(folder_of(tmp_path, 7)), split="train", size=8)
    streams = [
        TrainStream(images, 12, 1, rank=rank, world_size=world_size, accumulate=accumulate)
        for rank in range(world_size)
    ]
    seen = [name for step in range(7) for micro in range(accumulate) for s in streams for name in s.names(step, micro)]
    everything = sorted(images.name(i) for i in range(7))
    epochs = [seen[start : start + 7] for start in range(0, len(seen), 7)]
    assert len(epochs) == 12
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 6  # another order each time
    whole = TrainStream(images, 12, 1)
    assert seen == [name for step in range(7) for name in whole.names(step)]


def test_resuming_on_other_ranks_goes_on_in_the_epoch(tmp_path):
    """Steps 0 to 2 by 4 ranks, 3 to 5 by 2: three epochs of 8 images, none repeated or lost."""
    images = open_dataset(str(folder_of(tmp_path, 8)), split="train", size=8)
    seen = [
        name
        for step, ranks in ((0, 4), (1, 4), (2, 4), (3, 2), (4, 2), (5, 2))
        for rank in range(ranks)
        for name in TrainStream(images, 4, 9, rank=rank, world_size=ranks).names(step)
    ]
    for epoch in range(3):
        assert sorted(seen[8 * epoch : 8 * epoch + 8]) == [f"{i:04d}.png" for i in range(8)]


def test_names_belong_to_the_crops(tmp_path):
    """One grey level per file, so that a crop tells its file."""
    for level in range(6):
        write(tmp_path / f"{level}.png", np.full((9, 9, 1), 40 * level, dtype=np.uint8))
    stream = TrainStream(open_dataset(str(tmp_path), split="train", size=8), 12, 0, accumulate=2)
    for micro in range(2):
        levels = ((stream.batch(5, micro)[:, 0, 0, 0] + 1) * 127.5).round().long() // 40
        assert [f"{level}.png" for level in levels] == stream.names(5, micro)


@pytest.mark.parametrize("data", ["builtin:digits", "folder"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_together_are_the_batch(tmp_path, data, accumulate):
    images = open_dataset(str(folder_of(tmp_path, 5)) if data == "folder" else data, split="train", size=8)
    whole = TrainStream(images, 8, 2).batch(3)
    for world_size in (1, 2):
        parts = [
            TrainStream(images, 8, 2, rank=rank, world_size=world_size, accumulate=accumulate).batch(3, micro)
            for micro in range(accumulate)
            for rank in range(world_size)
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("workers", "depth", "accumulate"), [(1, 1, 2), (3, 2, 1), (4, 5, 2)])
def test_prefetch_is_the_same_for_any_threads(workers, depth, accumulate):
    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 8, 0, accumulate=accumulate)
    batches = list(prefetch(stream, range(4, 10), workers=workers, depth=depth))
    expected = [stream.batch(step, micro) for step in range(4, 10) for micro in range(accumulate)]
    assert len(batches) == len(expected)
    assert all(torch.equal(batch, other) for batch, other in zip(batches, expected, strict=True))


def test_prefetch_prepares_no_more_than_it_is_told():
    asked = []

    def steps():
        for step in range(100):
            asked.append(step)
            yield step

    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 2, 0)
    batches = prefetch(stream, steps(), depth=3)
    for taken in range(1, 6):
        next(batches)
        assert len(asked) == taken + 3
    batches.close()


@pytest.mark.parametrize("num_images", [1, 2, 1000])
def test_orders_are_permutations_and_do_not_depend_on_history(num_images):
    order = EpochOrder(num_images, 4)
    epochs = [[order.index(epoch * num_images + place) for place in range(num_images)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    backwards = EpochOrder(num_images, 4)
    for p in reversed(range(4 * num_images)):
        assert backwards.index(p) == epochs[p // num_images][p % num_images]


def test_orders_of_seeds_and_epochs_are_unrelated():
    """Of 2,000 places, two random permutations agree in about one."""
    order, other_seed = EpochOrder(2000, 0), EpochOrder(2000, 1)
    first, epoch = ([order.index(e * 2000 + place) for place in range(2000)] for e in (0, 1))
    seed = [other_seed.index(place) for place in range(2000)]
    for other in (epoch, seed):
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 12
