"""Signals that ask a run to stop: it ends its step, saves, and goes on another time."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopRequest"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, a manager's stop, a manager's "time is almost up"


class StopRequest:
    """Whether one of SIGINT, SIGTERM and SIGUSR1 has come.

    To a process alone a second one acts at once, as it would have without us. Among several it does nothing: torchrun
    hands on what the processes have had already from the terminal or the manager, and so would end them while they
    save. It ends those that do not stop by itself.
    """

    def __init__(self, *, alone: bool) -> None:
        self.came = False
        self._alone = alone

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over, and gives them back at the end."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def remember(number: int, frame: FrameType | None) -> None:
            self.came = True
            if self._alone:
                for caught, handler in before.items():
                    signal.signal(caught, handler)

        for number in before:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
