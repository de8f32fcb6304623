"""Signals that ask a run to stop: it ends its step, saves, and goes on another time."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopRequest"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, a manager's stop, a manager's "time is almost up"


class StopRequest:
    """Whether one of SIGINT, SIGTERM and SIGUSR1 has come. A second one acts at once, as it would have without us."""

    def __init__(self) -> None:
        self.came = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over, and gives them back at the end."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def remember(number: int, frame: FrameType | None) -> None:
            self.came = True
            for caught, handler in before.items():
                signal.signal(caught, handler)

        for number in before:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
