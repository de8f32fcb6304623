"""vqdm_train.runlog: the line of a logged step, the remaining time, what a resumed run does to stats.jsonl."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vqdm_train import runlog
from vqdm_train.runlog import RunLog, duration

STATS = {
    "loss": 0.0423,
    "psnr_rgb": 21.934,
    "utilization": 0.975,
    "perplexity": 812.3,
    "images_per_second": 412.3,
    "data_wait": 0.001,
    "data_wait_share": 0.031,
    "peak_memory_gib": 1.44,
}


class Clock:
    """Stands in for perf_counter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(runlog, "perf_counter", lambda: self.now)


def logged(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "stats.jsonl").read_text().splitlines()]


# --- the line ---------------------------------------------------------------------------------------------------------


def test_a_logged_step_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with RunLog(tmp_path, first_step=0, steps=600) as log:
        clock.now += 25
        log.stats({"step": 10, **STATS})
        adversarial = {"logits_real": 0.53, "logits_fake": -0.41, "adaptive_weight": 0.8123}
        clock.now += 25
        log.stats({"step": 20, **STATS, **adversarial})
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "step 10/600  loss 0.0423  psnr 21.93 dB  codes used 97.5%  perplexity 812  412 images/s  waiting 3%  1.4 GiB  "
        "24 min 35 s left"
    )
    assert "logits real 0.53 fake -0.41  adaptive weight 0.812" in second
    assert logged(tmp_path) == [10, 20]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (250, "4 min 10 s"),
        (3600, "1 h"),
        (3900, "1 h 5 min"),
        (86400 * 2 + 3600 * 3 + 59, "2 d 3 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_rest_is_judged_by_the_recent_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with RunLog(tmp_path, first_step=0, steps=1000) as log:
        for step in range(10, 301, 10):
            clock.now += 1000 if step <= 100 else 10  # slow at first
            log.stats({"step": step, **STATS})
    lines = capsys.readouterr().out.splitlines()
    assert lines[9].endswith("1 d 1 h left")  # 900 steps of 100 s
    assert lines[-1].endswith("11 min 40 s left")  # 700 steps of 1 s


def test_the_rest_of_a_resumed_run_is_judged_by_its_own_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with RunLog(tmp_path, first_step=900, steps=1000) as log:
        clock.now += 30
        log.stats({"step": 910, **STATS})
    assert capsys.readouterr().out.endswith("4 min 30 s left\n")  # 90 steps of 3 s


def test_a_terminal_has_lines_above_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    clock = Clock(monkeypatch)
    with RunLog(tmp_path, first_step=2, steps=4) as log:
        clock.now += 3
        log.step()
        log.stats({"step": 3, **STATS})
        log.step()
    said = screen.getvalue()
    assert "step 3/4  loss 0.0423" in said
    assert said.index("step 3/4") < said.rindex("4/4  3 s left")


# --- stats.jsonl and samples ------------------------------------------------------------------------------------------


def test_a_resumed_run_forgets_what_it_will_repeat_and_torn_lines(tmp_path: Path) -> None:
    with RunLog(tmp_path, first_step=0, steps=50) as log:
        for step in (10, 20, 30):
            log.stats({"step": step, **STATS})
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    with RunLog(tmp_path, first_step=20, steps=50) as log:
        log.stats({"step": 30, **STATS})
    assert logged(tmp_path) == [10, 20, 30]


def test_trackers_hear_everything_and_are_closed(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Listener:
        def stats(self, step: int, stats: dict[str, float]) -> None:
            heard.append((step, stats))

        def grid(self, step: int, picture: Image.Image) -> None:
            heard.append((step, picture.size))

        def close(self) -> None:
            heard.append("closed")

    with RunLog(tmp_path, first_step=0, steps=50, trackers=[Listener()]) as log:
        log.samples(0, torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64))
        log.stats({"step": 10, **STATS})
    assert heard == [(0, (256, 384)), (10, STATS), "closed"]
    assert (tmp_path / "samples" / "step-000000.png").is_file()


def test_the_other_processes_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, first_step=0, steps=50, quiet=True) as log:
        log.samples(0, torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64))
        log.stats({"step": 10, **STATS})
        log.step()
        log.say("a word")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_text_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of a file's name that are no UTF-8, on a terminal that takes nothing else."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    with RunLog(tmp_path, first_step=0, steps=1) as log:
        log.say("passed over bad-\udcff.png")
    assert terminal.buffer.getvalue() == b"passed over bad-\\udcff.png\n"
