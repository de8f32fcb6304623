"""`vqdm` whose reader does something at one step of one process: python faulty_reader.py FAULT RANK STEP train ...

Where torchrun has restarted the processes, the fault does not come again.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from vqdm_train import trainer
from vqdm_train.cli import main

__all__ = ["FAULTS", "install"]


def _fail() -> None:
    raise RuntimeError("what a test lets happen")


# What each does before the step's images are given.
FAULTS: dict[str, Callable[[], object]] = {
    "error": _fail,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(1000),
    "nan": lambda: torch.nan,  # from this step on, in the images
    **{
        name: lambda name=name: os.kill(os.getpid(), getattr(signal, name)) for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    },
}


def install(fault: str, step: int) -> None:
    """Makes the trainer of this process meet the fault in its reader, `step` steps after its start or resumption."""
    prefetch = trainer.prefetch

    def faulty(*arguments: Any, **options: Any) -> Generator[Tensor, None, None]:
        poison = 0.0
        for number, images in enumerate(prefetch(*arguments, **options)):
            if number == step:
                poison = FAULTS[fault]() or 0.0
            yield images + poison

    trainer.prefetch = faulty


if __name__ == "__main__":
    fault, rank, step, *words = sys.argv[1:]
    if os.environ["RANK"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        install(fault, int(step))
    main(words, prog_name="vqdm")
