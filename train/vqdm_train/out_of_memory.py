"""What a run that does not fit into its device's memory says: how many images would."""

import contextlib
from collections.abc import Iterator

import torch

from vqdm_train.config import Config
from vqdm_train.distributed import World
from vqdm_train.errors import StatedError
from vqdm_train.plan import device_memory, largest_batch

__all__ = ["TooLargeError", "saying_what_fits"]


class TooLargeError(StatedError):
    """A step does not fit into the memory of the device; the message says what would."""


@contextlib.contextmanager
def saying_what_fits(config: Config, world: World) -> Iterator[None]:
    """Makes torch's OutOfMemoryError a TooLargeError of one sentence. torch has none for the CPU's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TooLargeError(_sentence(config, world)) from error


def _sentence(config: Config, world: World) -> str:
    memory = device_memory(world.device)
    now = config.batch_size // (config.accumulate * world.size)  # images at once
    fit = largest_batch(config, memory)
    if fit >= now:  # so the plan says, but others may hold memory too, or it lies in pieces
        fit = now // 2
    said = f"out of memory: {now} images at once did not fit into the {memory / 2**30:.1f} GiB of {world.device}; "
    if fit == 0:
        return said + "nor would one: a smaller model, or checkpoint_activations=true, needs less"
    said += f"{fit} would: a new run with --batch-size {fit * config.accumulate * world.size}"
    for micro_batches in range(config.accumulate + 1, config.batch_size + 1):
        at_once, rest = divmod(config.batch_size, micro_batches * world.size)
        if rest == 0 and at_once <= fit:
            return said + f", or the same batch in parts with --set accumulate={micro_batches}"
    return said
