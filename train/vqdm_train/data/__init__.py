"""Images for training and evaluation.

    images = open_dataset("builtin:photos", split="train", size=64)
    batch = TrainStream(images, batch_size=16, seed=0).batch(step=0)        # [16, 3, 64, 64] in [-1, 1]

A source of pixels is built in (builtin.py) or decoded (encoded.py, decode.py, arrays.py) from files (files.py), tar
shards (shards.py) or a Hugging Face data set (hub.py). images.py says how crops are cut and corrupt files replaced,
order.py and stream.py which ones a step gets, survey.py and check.py what is wrong with a data set before a run.
"""

from vqdm_train.data.check import Finding, check_data
from vqdm_train.data.config import DataConfig, open_eval, open_train
from vqdm_train.data.decode import CorruptImageError, read_image
from vqdm_train.data.images import CorruptDataError, EvalImages, TrainImages
from vqdm_train.data.open import open_dataset
from vqdm_train.data.stream import TrainStream, prefetch

__all__ = [
    "CorruptDataError",
    "CorruptImageError",
    "DataConfig",
    "EvalImages",
    "Finding",
    "TrainImages",
    "TrainStream",
    "check_data",
    "open_dataset",
    "open_eval",
    "open_train",
    "prefetch",
    "read_image",
]
