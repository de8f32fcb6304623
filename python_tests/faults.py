"""Faults on demand: processes that are killed, or meet an error, at a chosen file operation, time or size of a file.

A child is forked from the test's own process, so that it costs no imports.
"""

import functools
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable

import torch

__all__ = ["FAILED", "at_operation", "die", "fork", "fork_ranks", "forked", "limit_file_size", "wait"]

FAILED = 3  # exit status of a child that ended with an error
WRITING = os.O_WRONLY | os.O_RDWR
# Audit events of the calls that change a file or a folder; of "open" those for writing; fsync has none and is patched.
OPERATIONS = ("os.fsync", "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


def fork(child: Callable[[], object], *, patience: int = 180) -> int:
    """Runs `child` in a process of its own, silently, and returns its number.

    An error in it is exit status FAILED. After `patience` seconds SIGALRM ends it.
    """
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(patience)
    torch.set_num_threads(1)  # threads of the parent's pool are not there
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        child()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else FAILED)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)
    os._exit(0)


def wait(pid: int) -> int:
    """The exit status of the child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_ranks(num_ranks: int, child: Callable[[], object], *, patience: int = 180) -> list[int]:
    """Runs `child` in processes that find the variables which torchrun would have set; returns their numbers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def ranked(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        child()

    return [fork(functools.partial(ranked, rank), patience=patience) for rank in range(num_ranks)]


def forked(child: Callable[[], object], *, kill_after: float | None = None) -> int:
    """Runs `child` and returns its exit status; kills it after so many seconds, where it is asked to."""
    pid = fork(child)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return wait(pid)


def at_operation(number: int, action: Callable[[], None]) -> list[str]:
    """From now on, in this process, the file operation of this number does `action` first; the list fills with them."""
    met: list[str] = []

    def arrive(event: str, arguments: tuple[object, ...] = ()) -> None:
        if event in OPERATIONS and (event != "open" or (isinstance(arguments[2], int) and arguments[2] & WRITING)):
            met.append(event)
            if len(met) == number:
                action()

    fsync = os.fsync

    def counted_fsync(handle: int) -> None:
        arrive("os.fsync")
        fsync(handle)

    os.fsync = counted_fsync  # type: ignore[assignment]
    sys.addaudithook(arrive)  # cannot be removed: for processes about to end only
    return met


def die() -> None:
    """What kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def limit_file_size(size: int, *, deadly: bool) -> None:
    """From now on, in this process, no file grows over so many bytes: an error as on a full disk, or the end."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
