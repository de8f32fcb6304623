"""A look at a sample of the files before a run starts, so that bad data is known before time is spent on it."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vqdm_train.data.images import TrainImages

__all__ = ["survey"]

_MAX_FILES, _SECONDS = 4096, 5.0


def survey(images: TrainImages, *, workers: int = 1) -> None:
    """Decodes up to 4,096 files, evenly spread and for about 5 seconds at most, and counts the corrupt ones.

    `images.corrupt` names those and `images.description` says how many files were looked at. Raises CorruptDataError
    as training itself would. Nothing that is trained on depends on it.
    """
    spread = np.linspace(0, len(images) - 1, min(len(images), _MAX_FILES)).round().astype(np.int64)
    order = np.random.default_rng(0).permutation(spread)  # spread evenly also where the time ends it
    deadline = time.monotonic() + _SECONDS
    with ThreadPoolExecutor(workers, thread_name_prefix="vqdm-data") as pool:
        for start in range(0, len(order), workers):  # the time is looked at often: a large picture may take a second
            part = [int(index) for index in order[start : start + workers]]
            for index, passed in zip(part, pool.map(lambda index: images.load(index)[1], part), strict=True):
                images.account(index, passed)
            if time.monotonic() > deadline:
                break
