"""Training that is killed, or finds the disk full or damaged, needs no hand: the same command ends as if undisturbed.

Shares of each count: `make test` tries a fiftieth of what `make soak` does.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import faults
from same_run import assert_same_run
from tiny_run import ALONE, tiny_config, write_images
from vqdm_train import checkpoint
from vqdm_train.checkpoint import newest_valid, step_of
from vqdm_train.trainer import Trainer

# What runs beside tiny_run's settings: the parts that have a state of their own.
SETTINGS = (
    "quantizer.queue_size=300",
    *("adversarial.weight=0.5", "discriminator.num_layers=2", "discriminator.base_channels=8"),
)
SHORT = ("steps=4", "checkpoint.save_every=2", "checkpoint.keep_last=1", "log_every=1", "sample_every=2")
SHARES = [0.02, pytest.param(1.0, marks=pytest.mark.slow)]


class Undisturbed(NamedTuple):
    """A run from its start to its end, and what it took."""

    out: Path
    train: Callable[[Path], bool]  # starts, or goes on with, the same run elsewhere
    operations: int
    seconds: float


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the forked children: the number of threads decides how sums round."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("faults")
    config = tiny_config(write_images(folder / "images"), *SETTINGS, *SHORT)

    def train(out: Path) -> bool:
        return Trainer(config, out, ALONE).run()

    train(folder / "warm")  # what torch prepares at first use, children inherit
    started = time.monotonic()
    assert faults.forked(lambda: train(folder / "whole")) == 0
    seconds = time.monotonic() - started
    count, told = os.pipe()

    def counted() -> None:
        met = faults.at_operation(0, faults.die)
        train(folder / "counted")
        os.write(told, len(met).to_bytes(4, "big"))

    assert faults.forked(counted) == 0
    return Undisturbed(folder / "whole", train, int.from_bytes(os.read(count, 4), "big"), seconds)


def newest_step(out: Path) -> int:
    """The step to go on from; nothing that a kill leaves looks like a damaged checkpoint."""
    complaints: list[str] = []
    found = newest_valid(out / "checkpoints", complaints.append)
    assert complaints == []
    return 0 if found is None else step_of(found)


def reporting(train: Callable[[], object]) -> tuple[Callable[[], object], Callable[[], int]]:
    """The training, made to tell of each save that is complete, and what it told last."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    save = checkpoint.save

    def saved(root: Path, step: int, *args: object, **options: object) -> Path:
        folder = save(root, step, *args, **options)  # type: ignore[arg-type]
        os.write(write, step.to_bytes(4, "big"))
        return folder

    def child() -> None:
        checkpoint.save = saved
        train()

    def last() -> int:
        try:
            return int.from_bytes(os.read(read, 1 << 16)[-4:], "big")
        except BlockingIOError:
            return 0
        finally:
            os.close(read)
            os.close(write)

    return child, last


def assert_goes_on(out: Path, undisturbed: Undisturbed) -> None:
    """The same command, and no hand, brings the run to the end that it would have had."""
    assert faults.forked(lambda: undisturbed.train(out)) == 0
    assert_same_run(out, undisturbed.out)
    assert newest_step(out) == 4
    left = {path.name for path in out.rglob("*") if "partial" in path.name or path.name.endswith(".tmp")}
    assert left == set()


@pytest.mark.parametrize("share", SHARES)
def test_killed_at_every_file_operation(undisturbed: Undisturbed, tmp_path: Path, share: float) -> None:
    numbers = range(1, undisturbed.operations + 1)
    assert len(numbers) > 100
    for number in random.Random(1).sample(numbers, max(4, round(share * len(numbers)))):
        out = tmp_path / str(number)

        def train(out: Path = out, number: int = number) -> None:
            faults.at_operation(number, faults.die)
            undisturbed.train(out)

        child, last_saved = reporting(train)
        assert faults.forked(child) == -signal.SIGKILL
        assert newest_step(out) >= last_saved()
        assert_goes_on(out, undisturbed)
        shutil.rmtree(out)


@pytest.mark.parametrize("share", SHARES)
def test_killed_at_random_times(undisturbed: Undisturbed, tmp_path: Path, share: float) -> None:
    moments = random.Random(2)
    out = tmp_path / "run"
    for _ in range(round(200 * share)):
        child, last_saved = reporting(lambda: undisturbed.train(out))
        status = faults.forked(child, kill_after=moments.uniform(0, 1.2 * undisturbed.seconds))
        assert status in (0, -signal.SIGKILL)
        assert newest_step(out) >= last_saved()
        if newest_step(out) == 4:
            assert_goes_on(out, undisturbed)
            shutil.rmtree(out)
    assert_goes_on(out, undisturbed)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("deadly", [True, False], ids=["killed", "error"])
def test_file_that_cannot_grow(
    undisturbed: Undisturbed, tmp_path: Path, capfd: pytest.CaptureFixture[str], share: float, deadly: bool
) -> None:
    """In the middle of a write of the second save the process is killed, or told that the disk is full."""
    save = checkpoint.save
    largest = max(path.stat().st_size for path in undisturbed.out.rglob("*.safetensors"))
    for size in random.Random(3).sample(range(largest), round(50 * share)):
        out = tmp_path / str(size)

        def limited(root: Path, step: int, *args: object, size: int = size, **options: object) -> Path:
            if step == 4:
                faults.limit_file_size(size, deadly=deadly)
            return save(root, step, *args, **options)  # type: ignore[arg-type]

        def train(out: Path = out, limited: Callable[..., Path] = limited) -> None:
            checkpoint.save = limited
            undisturbed.train(out)

        assert faults.forked(train) == (-signal.SIGXFSZ if deadly else faults.FAILED)
        said = " ".join(capfd.readouterr().err.split())
        if not deadly:
            assert "step-000004 could not be saved: " in said
            assert "File too large" in said
            assert "step-000002 is kept, and the same command goes on from there" in said
        assert newest_step(out) == 2
        assert_goes_on(out, undisturbed)
        shutil.rmtree(out)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_damaged_files(undisturbed: Undisturbed, tmp_path: Path, share: float, kind: str) -> None:
    """A file of a checkpoint that is not what was written: the checkpoint before is used, and that is said."""
    choose = random.Random(4)
    older, newer = (tmp_path / f"step-{step:06d}" for step in (2, 4))
    for folder in (older, newer):  # which step the older one holds is nothing to this test
        shutil.copytree(undisturbed.out / "checkpoints" / "step-000004", folder)
    files = [path for path in sorted(newer.rglob("*")) if path.is_file()]
    assert len(files) >= 6
    count = len(files) * 64 if kind == "truncated" else 500
    for i in range(max(len(files), round(count * share))):
        path = files[i % len(files)]
        whole = path.read_bytes()
        position = choose.randrange(len(whole))
        if kind == "truncated":
            path.write_bytes(whole[:position])
        else:
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << i % 8]) + whole[position + 1 :])
        said: list[str] = []
        found = newest_valid(tmp_path, said.append)
        if found == newer:  # white space of the manifest
            assert path.name == "manifest.json"
            assert json.loads(path.read_bytes()) == json.loads(whole)
        else:
            assert found == older
            assert [line.startswith(f"passing over a damaged checkpoint: {newer}") for line in said] == [True]
        path.write_bytes(whole)
    assert newest_valid(tmp_path, print) == newer
