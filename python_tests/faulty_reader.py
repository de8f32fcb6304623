"""`vqdm` whose reader meets a fault at one step of one process: python faulty_reader.py FAULT RANK STEP train ...

Where torchrun has restarted the processes, the fault does not come again.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import faults
from vqdm_train import trainer
from vqdm_train.cli import main

__all__ = ["FAULTS", "install"]


def _fail() -> None:
    raise RuntimeError("what a test lets happen")


# What each does before the step's images are given.
FAULTS: dict[str, Callable[[], object]] = {
    "error": _fail,
    "kill": faults.die,
    "hang": partial(time.sleep, 1000),
    **{name: partial(signal.raise_signal, signal.Signals[name]) for name in ("SIGTERM", "SIGINT", "SIGUSR1")},
}


def install(fault: str, step: int) -> None:
    """Makes the trainer of this process meet the fault in its reader, `step` steps after its start or resumption.

    "nan" is one too: from that step on, images hold NaN.
    """
    prefetch = trainer.prefetch

    def faulty(*arguments: Any, **options: Any) -> Generator[Tensor, None, None]:
        for number, images in enumerate(prefetch(*arguments, **options)):
            if number == step and fault != "nan":
                FAULTS[fault]()
            yield images + torch.nan if fault == "nan" and number >= step else images

    trainer.prefetch = faulty


if __name__ == "__main__":
    fault, rank, step, *words = sys.argv[1:]
    if os.environ["RANK"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        install(fault, int(step))
    main(words, prog_name="vqdm")
