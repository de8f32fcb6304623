"""Training by several processes (gloo): they resume to the bit, fail together, stop together, and see each image once.

The processes are forked from the test's own and find the variables that torchrun would have set; what torchrun itself
does with them, restarting them above all, is tested with torchrun.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import faults
import faulty_reader
from same_run import assert_same_run
from tiny_run import tiny_flags, write_images
from vqdm_train import trainer
from vqdm_train.cli import EXIT_STOPPED, main
from vqdm_train.data import TrainStream

ROOT = Path(__file__).parents[2]
# What runs beside tiny_run's settings: all that has a state of its own.
SETTINGS = (
    "quantizer.queue_size=300",
    *("adversarial.weight=0.5", "discriminator.num_layers=2", "discriminator.base_channels=8"),
)
SHORT = ("batch_size=8", "sample_every=1000", "checkpoint.save_every=2", "timeout=30")

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    images = write_images(folder / "images", count=16)
    main(words(images, folder / "warm", 1), standalone_mode=False)  # what is prepared at first use, children inherit
    return images


def words(images: Path, out: Path, steps: int, *settings: str) -> list[str]:
    """The words of the command line."""
    changes = [word for setting in (*SHORT, *SETTINGS, *settings) for word in ("--set", setting)]
    return ["train", *tiny_flags(images), "--device", "cpu", "--steps", str(steps), "--out", str(out), *changes]


def train(num_ranks: int, command: list[str], prepare: Callable[[int], object] = lambda rank: None) -> list[int]:
    """The exit statuses of so many processes that run the command, each after `prepare`."""

    def child() -> None:
        prepare(int(os.environ["RANK"]))
        main(command)

    return [faults.wait(pid) for pid in faults.fork_ranks(num_ranks, child)]


def on_rank(chosen: int, fault: str, step: int) -> Callable[[int], None]:
    """A `prepare` for `train`: this fault in the reader of one rank."""

    def prepare(rank: int) -> None:
        if rank == chosen:
            faulty_reader.install(fault, step)

    return prepare


def newest(out: Path) -> str:
    return max(path.name for path in (out / "checkpoints").iterdir())


# resuming -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """The directory of a run of so many ranks and steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def directory(num_ranks: int, steps: int) -> Path:
        out = folder / f"{num_ranks}-{steps}"
        if not out.exists():
            assert train(num_ranks, words(images, out, steps)) == [0] * num_ranks
        return out

    return directory


@pytest.mark.parametrize(
    ("num_ranks", "steps"),
    [(4, 4), *(pytest.param(num_ranks, 40, marks=pytest.mark.slow) for num_ranks in (1, 2, 4))],
)
def test_killed_and_resumed_equals_undisturbed(
    images: Path, undisturbed: Callable[[int, int], Path], tmp_path: Path, num_ranks: int, steps: int
) -> None:
    out, last = tmp_path / "run", num_ranks - 1
    statuses = train(num_ranks, words(images, out, steps), on_rank(last, "kill", steps // 2 + 1))
    assert statuses == [1] * last + [-signal.SIGKILL]
    assert newest(out) == f"step-{steps // 2:06d}"
    assert train(num_ranks, words(images, out, steps)) == [0] * num_ranks
    assert_same_run(out, undisturbed(num_ranks, steps))


def test_each_image_once_in_an_epoch_also_on_fewer_ranks(images: Path, tmp_path: Path) -> None:
    """Two epochs of 16 images, batches of 8: killed on 4 ranks after step 3, of which 2 are saved, resumed on 2."""
    seen = tmp_path / "seen"
    seen.mkdir()

    def record(rank: int) -> None:
        prefetch = trainer.prefetch

        def recorded(stream: TrainStream, steps: Iterable[int], **options: Any) -> Generator[Tensor, None, None]:
            for step, batch in zip(steps, prefetch(stream, steps, **options), strict=True):
                (seen / f"{step}-{rank}").write_text(json.dumps(stream.names(step)))
                yield batch

        trainer.prefetch = recorded

    def record_and_fail(rank: int) -> None:
        on_rank(3, "kill", 3)(rank)
        record(rank)

    out = tmp_path / "run"
    assert train(4, words(images, out, 4), record_and_fail) == [1, 1, 1, -signal.SIGKILL]
    assert newest(out) == "step-000002"
    for path in seen.iterdir():
        if int(path.name.partition("-")[0]) >= 2:  # lost with the kill, and made again
            path.unlink()
    assert train(2, words(images, out, 4), record) == [0, 0]
    names = Counter(name for path in seen.iterdir() for name in json.loads(path.read_text()))
    assert len(names) == 16
    assert set(names.values()) == {2}


# failing and stopping -------------------------------------------------------------------------------------------------


def test_a_hanging_process_ends_the_others(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def child() -> None:
        on_rank(1, "hang", 2)(int(os.environ["RANK"]))
        main(words(images, tmp_path / "run", 8, "timeout=3"))

    first, hanging = faults.fork_ranks(2, child, patience=60)
    assert faults.wait(first) == 1
    os.kill(hanging, signal.SIGKILL)  # torchrun's part, which comes after the first has ended
    faults.wait(hanging)
    said = capfd.readouterr().err
    assert "rank 0, step 2: another process failed or does not answer: " in said
    assert "Timed out waiting 3000ms" in said
    assert "rank 0: no word from rank 1" in said


def test_an_error_of_one_process_is_told_by_all(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(2, words(images, tmp_path / "run", 8), on_rank(1, "error", 3)) == [1, 1]
    said = capfd.readouterr().err
    assert "rank 1, step 3: RuntimeError: what a test lets happen" in said
    assert "rank 0, step 3: another process failed or does not answer: " in said
    assert "rank 0 heard from rank 1, step 3: RuntimeError: what a test lets happen" in said


def test_not_finite_on_one_process_ends_all(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = words(images, tmp_path / "run", 8, "max_skipped_steps=2")
    assert train(2, command, on_rank(1, "nan", 3)) == [1, 1]
    said = capfd.readouterr().err
    for rank in range(2):
        assert f"rank {rank}, step 4: DivergedError: training stopped: 2 steps in a row, up to step 5" in said


@pytest.mark.parametrize("name", ["SIGUSR1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGTERM", "SIGINT"))])
def test_a_signal_to_one_process_saves_and_stops_all(images: Path, tmp_path: Path, name: str) -> None:
    assert train(2, words(images, tmp_path / "run", 8), on_rank(1, name, 2)) == [EXIT_STOPPED] * 2
    assert newest(tmp_path / "run") == "step-000003"


# torchrun -------------------------------------------------------------------------------------------------------------


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "train"), str(ROOT / "python_tests")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def torchrun(options: list[str], fault: list[str], command: list[str]) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun, with a fault as faulty_reader.py takes it."""
    script = str(ROOT / "python_tests" / "faulty_reader.py")
    words = [*TORCHRUN, *options, script, *fault, *command]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)


def test_torchrun_restarts_a_killed_run(images: Path, undisturbed: Callable[[int, int], Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = torchrun(["--max-restarts=1"], ["kill", "1", "3"], words(images, out, 4))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "going on after step 2" in done.stdout
    assert_same_run(out, undisturbed(2, 4))


@pytest.mark.slow
def test_torchrun_may_hand_on_a_signal_that_all_have_had(images: Path, tmp_path: Path) -> None:
    """As the end of a job sends it: to the processes and to torchrun, from which they then get it again."""
    out = tmp_path / "run"
    command = [*TORCHRUN, "-m", "vqdm_train", *words(images, out, 100_000)]
    launched = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    while not (out / "checkpoints" / "step-000002").exists():
        assert launched.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    assert len(children) >= 2
    for pid in [*map(int, children), launched.pid]:
        os.kill(pid, signal.SIGTERM)
    told = launched.communicate(timeout=60)[0]
    assert f"stopped after step {int(newest(out).removeprefix('step-'))} of" in told


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["error", "kill", "hang", "nan", "SIGTERM", "SIGUSR1"])
def test_torchrun_ends_all(images: Path, tmp_path: Path, fault: str) -> None:
    out = tmp_path / "run"
    command = words(images, out, 8, "timeout=5", "max_skipped_steps=2")
    done = torchrun(["--shutdown-timeout=5"], [fault, "1", "3"], command)
    assert done.returncode == 1  # torchrun's own, whatever that of the processes
    if fault.startswith("SIG"):
        assert f"exitcode  : {EXIT_STOPPED} " in done.stderr
        assert newest(out) == "step-000004"
    else:
        told = {"error": "rank 1, step 3", "kill": "rank 0, step 3", "hang": "rank 0, step 3", "nan": "rank 1, step 4"}
        assert f"{told[fault]}: " in done.stderr
        shutil.rmtree(out / "samples")
        assert train(2, words(images, out, 8, "max_skipped_steps=2")) == [0, 0]
