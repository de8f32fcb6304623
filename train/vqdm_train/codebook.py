"""Where the codes of a run start, if not where they were drawn: at the k-means of its first features, or at a table.

The features are those of the first batches of training, through the encoder as it was drawn, of all processes together
and in the order in which one process would see them: all processes, however many they are, start at the same codes.
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from vqdm_cuda import (
    ImageTokenizer,
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    NormalizedQuantizer,
    Quantizer,
    ResidualQuantizer,
    kmeans,
)
from vqdm_train.data import TrainStream
from vqdm_train.distributed import World

__all__ = ["load_table", "start_at_kmeans", "start_at_table"]

# Features for k-means: 16 for each code, but no more than 65,536 where that leaves at least 4.
_ENOUGH, _FEWEST, _MANY = 16, 4, 65_536


def start_at_kmeans(tokenizer: ImageTokenizer, stream: TrainStream, seed: int, world: World) -> None:
    """Sets the codes to the k-means of the first batches' features. Every process must call."""
    quantizer = _inner(tokenizer.quantizer)
    K = quantizer.codebook_size
    wanted = min(_ENOUGH * K, max(_MANY, _FEWEST * K))
    batches: list[Tensor] = []
    while sum(map(len, batches)) < wanted:
        batches.append(_features(tokenizer, stream.batch(len(batches)).to(world.device), quantizer, world))
    features = torch.cat(batches)
    if world.main:
        print(f"codes       start at the k-means of {len(features):,} features, of {len(batches)} batches", flush=True)
    quantizer.start_at(kmeans(features, K, seed=seed))  # type: ignore[operator]


@torch.no_grad()
def _features(tokenizer: ImageTokenizer, images: Tensor, quantizer: Quantizer, world: World) -> Tensor:  # [N, d]
    """What the quantizer searches codes for, of all processes' images: vectors, pieces of them, or unit vectors."""
    tokenizer.eval()  # without dropout
    rows = tokenizer.encoder(images).movedim(1, -1).reshape(-1, quantizer.code_dim)
    tokenizer.train()
    return world.gather(F.normalize(rows) if isinstance(quantizer, NormalizedQuantizer) else rows)


def start_at_table(tokenizer: ImageTokenizer, path: Path) -> None:
    """Sets the codes, or the table behind a linear map, to those of a file.

    Raises:
        ValueError: the file is none (`load_table`), or its table does not fit.
    """
    table = load_table(path)
    try:
        _inner(tokenizer.quantizer).set_codes(table)  # type: ignore[operator]
    except ValueError as error:
        raise ValueError(f"quantizer.table: {path}: {error}") from None


def load_table(path: Path) -> Tensor:  # [K, n] float32
    """The table of a .npy file, or of a .safetensors file that holds nothing else.

    Raises:
        ValueError: there is no such file, or it holds something else than one matrix of floating point numbers.
    """
    try:
        if path.suffix == ".npy":
            tables = [torch.from_numpy(np.load(path, allow_pickle=False))]
        elif path.suffix == ".safetensors":
            tables = list(safetensors.torch.load_file(path).values())
        else:
            raise ValueError("neither suffix")
    except (OSError, EOFError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())  # on one line
        raise ValueError(f"quantizer.table: expected a .npy or .safetensors file, got {path}: {reason}") from None
    shapes = [f"{str(table.dtype).removeprefix('torch.')} {list(table.shape)}" for table in tables]
    if len(tables) != 1 or tables[0].dim() != 2 or not tables[0].is_floating_point():
        raise ValueError(f"quantizer.table: expected one matrix of floating point numbers in {path}, got {shapes}")
    return tables[0].float()


def _inner(quantizer: Quantizer) -> Quantizer:
    """The quantizer that holds the codes."""
    if isinstance(quantizer, (MultiHeadQuantizer, MultiScaleQuantizer, ResidualQuantizer)):
        return quantizer.inner
    return quantizer
