"""Checkpoints: kills and failures at every file operation and at random moments, damage of every kind, what is kept."""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import at_operation, die, forked
from vqdm_train import checkpoint
from vqdm_train.checkpoint import CorruptCheckpointError, clean, newest_valid, replace_folder, save, verify
from vqdm_train.files import replace_file


def writer(step: int) -> Callable[[Path], None]:
    """Two files, one in a subfolder, that tell the step."""

    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps({"step": step}))
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_bytes(bytes([step % 256]) * 3000)

    return write


def saved_step(folder: Path | None) -> int:
    """The step that a checkpoint holds, after checking every byte of it."""
    assert folder is not None
    step = json.loads((folder / "state.json").read_text())["step"]
    assert (folder / "model" / "weights").read_bytes() == bytes([step % 256]) * 3000
    assert folder.name == f"step-{step:06d}"
    return step


def silent(_: str) -> None:
    """Where damage is not what a test is about."""


# values ---------------------------------------------------------------------------------------------------------------


def test_save_and_find(tmp_path: Path) -> None:
    assert newest_valid(tmp_path, silent) is None
    for step in (5, 10, 15):
        assert saved_step(save(tmp_path, step, writer(step), keep_last=2)) == step
        assert saved_step(newest_valid(tmp_path, silent)) == step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000015"]
    manifest = json.loads((tmp_path / "step-000015" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["model/weights", "state.json"]
    assert manifest["files"]["model/weights"]["bytes"] == 3000


def test_order_is_that_of_numbers(tmp_path: Path) -> None:
    for step in (2, 1):
        replace_folder(tmp_path / f"step-{step}00000", writer(step))
    replace_folder(tmp_path / "step-1000000", writer(3))
    newest = newest_valid(tmp_path, silent)
    assert newest is not None
    assert newest.name == "step-1000000"


def test_saving_again_keeps_a_valid_one_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    def refuse(_: Path) -> None:
        raise AssertionError("a valid checkpoint was written again")

    folder = save(tmp_path, 5, writer(5), keep_last=1)
    assert save(tmp_path, 5, refuse, keep_last=1) == folder
    (folder / "state.json").write_text("{}")
    assert saved_step(save(tmp_path, 5, writer(5), keep_last=1)) == 5


def test_the_best_stays_until_another_is(tmp_path: Path) -> None:
    for step, best in ((5, 5), (10, 5), (15, 5), (20, 20), (25, 20)):
        save(tmp_path, step, writer(step), keep_last=1, keep={best})
        assert {path.name for path in tmp_path.iterdir()} == {f"step-{kept:06d}" for kept in (best, step)}
    assert saved_step(newest_valid(tmp_path, silent)) == 25


def test_damaged_later_ones_do_not_push_out_valid_ones(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, writer(step), keep_last=3)
    for step in (10, 15):
        (tmp_path / f"step-{step:06d}" / "state.json").unlink()
    save(tmp_path, 7, writer(7), keep_last=1)
    assert saved_step(newest_valid(tmp_path, silent)) == 7


def test_replace_folder_replaces(tmp_path: Path) -> None:
    replace_folder(tmp_path / "model", writer(1))
    replace_folder(tmp_path / "model", writer(2))
    verify(tmp_path / "model")
    assert (tmp_path / "model" / "model" / "weights").read_bytes() == bytes([2]) * 3000
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# kills and failures ---------------------------------------------------------------------------------------------------


def _full_disk() -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.parametrize("keep_last", [1, 2])
@pytest.mark.parametrize("action", [die, _full_disk])
def test_stopped_at_every_file_operation(tmp_path: Path, keep_last: int, action: Callable[[], None]) -> None:
    """Whatever operation of a save is its last, the previous checkpoint or the new one is there and whole."""
    for number in range(1, 200):
        root = tmp_path / str(number)
        for step in (5, 10):
            save(root, step, writer(step), keep_last=keep_last)

        def child(root: Path = root, number: int = number) -> None:
            met = at_operation(number, action)
            save(root, 15, writer(15), keep_last=keep_last)
            os._exit(4 if len(met) < number else 0)  # 0 also where an operation may fail, as mkdir of what is there

        status = forked(child)
        complaints: list[str] = []
        step = saved_step(newest_valid(root, complaints.append))
        assert complaints == []
        assert step == 15 if status in (0, 4) else step in (10, 15)
        clean(root)
        assert all(path.name.startswith("step-") for path in root.iterdir())
        assert saved_step(save(root, 20, writer(20), keep_last=keep_last)) == 20
        assert saved_step(newest_valid(root, silent)) == 20
        if status == 4:
            break
        shutil.rmtree(root)
    assert status == 4  # the loop ended because a save has no more operations to fail at
    assert number > 20


def test_failed_save_gives_its_space_back(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        writer(5)(folder)
        _full_disk()

    with pytest.raises(OSError, match=r"step-000005 could not be saved: .*no space left on device; it was the first"):
        save(tmp_path, 5, write, keep_last=1)
    assert list(tmp_path.iterdir()) == []
    save(tmp_path, 4, writer(4), keep_last=1)
    with pytest.raises(OSError, match="; step-000004 is kept, and the same command goes on from there"):
        save(tmp_path, 5, write, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]


def test_replace_file_replaces_or_leaves_all_as_it_was(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_text("half of")
        _full_disk()

    replace_file(tmp_path / "a.json", lambda path: path.write_text("one"))
    with pytest.raises(OSError, match="no space left"):
        replace_file(tmp_path / "a.json", half)
    assert (tmp_path / "a.json").read_text() == "one"
    replace_file(tmp_path / "a.json", lambda path: path.write_text("two"))
    assert (tmp_path / "a.json").read_text() == "two"
    (tmp_path / ".partial-a.json").write_text("of a killed process")
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """A process that saves one checkpoint after another is killed: at least the last one it reported is there."""
    moments = random.Random(0)
    for _ in range(40):
        done, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            for step in range(1, 100_000):
                save(tmp_path, step, writer(step), keep_last=1)
                os.write(report, step.to_bytes(4, "big"))
        os.close(report)
        reported = os.read(done, 4)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        reported += os.read(done, 1_000_000)
        os.close(done)
        complaints: list[str] = []
        step = saved_step(newest_valid(tmp_path, complaints.append))
        assert complaints == []
        assert step in (last := int.from_bytes(reported[-4:], "big"), last + 1)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


# damage ---------------------------------------------------------------------------------------------------------------


def two_saved(root: Path) -> Path:
    """Steps 5 and 10; returns the newer folder."""
    save(root, 5, writer(5), keep_last=2)
    return save(root, 10, writer(10), keep_last=2)


def assert_falls_back(root: Path) -> None:
    complaints: list[str] = []
    assert saved_step(newest_valid(root, complaints.append)) == 5
    assert len(complaints) == 1
    assert complaints[0].startswith("passing over a damaged checkpoint: ")
    assert "step-000010" in complaints[0]


@pytest.mark.parametrize("name", ["state.json", "model/weights", "manifest.json"])
def test_truncation_is_seen(tmp_path: Path, name: str) -> None:
    newer = two_saved(tmp_path)
    whole = (newer / name).read_bytes()
    for length in {0, 1, len(whole) // 2, len(whole) - 1}:
        (newer / name).write_bytes(whole[:length])
        assert_falls_back(tmp_path)
    (newer / name).write_bytes(whole)
    assert saved_step(newest_valid(tmp_path, silent)) == 10


def test_bit_flips_are_seen(tmp_path: Path) -> None:
    """A flipped bit is seen, or (in the manifest's white space) changes nothing that is read."""
    newer = two_saved(tmp_path)
    choose = random.Random(0)
    for name in ("state.json", "model/weights", "manifest.json"):
        whole = (newer / name).read_bytes()
        for _ in range(100):
            position, bit = choose.randrange(len(whole)), 1 << choose.randrange(8)
            flipped = whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :]
            (newer / name).write_bytes(flipped)
            if name == "manifest.json" and newest_valid(tmp_path, silent) == newer:
                assert json.loads(flipped) == json.loads(whole)
            else:
                assert_falls_back(tmp_path)
        (newer / name).write_bytes(whole)


def test_missing_extra_and_swapped_files_are_seen(tmp_path: Path) -> None:
    newer = two_saved(tmp_path)
    (newer / "extra").write_text("x")
    assert_falls_back(tmp_path)
    (newer / "extra").unlink()
    (newer / "state.json").rename(newer / "kept")
    assert_falls_back(tmp_path)
    (newer / "model" / "weights").rename(newer / "state.json")
    (newer / "kept").rename(newer / "model" / "weights")
    assert_falls_back(tmp_path)


def test_all_damaged_is_none_and_all_are_named(tmp_path: Path) -> None:
    two_saved(tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "manifest.json").write_text("[]")
    complaints: list[str] = []
    assert newest_valid(tmp_path, complaints.append) is None
    assert len(complaints) == 2


def test_verify_names_the_file(tmp_path: Path) -> None:
    newer = two_saved(tmp_path)
    verify(newer)
    (newer / "model" / "weights").write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match="step-000010/model/weights is not what was saved"):
        verify(newer)


# bad ------------------------------------------------------------------------------------------------------------------


def test_step_of_another_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint: expected a folder named step-NNNNNN, got model"):
        checkpoint.step_of(tmp_path / "model")
