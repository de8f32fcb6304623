"""The Slurm template, with commands of Slurm's names that only tell how they were called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "train" / "slurm" / "train.sbatch"
COMMANDS = {
    # Runs until it is asked to stop, or ends at once with the code that the test gives it.
    # SIGUSR1 must not end it.
    "srun": """echo "$@" > srun
        [ -n "$CODE" ] && exit $CODE
        kill -USR1 $$
        while [ ! -e asked ]; do sleep 0.02; done
        exit 1""",
    "scontrol": 'if [ "$1" = show ]; then echo host-a; echo host-b; else echo "$@" > requeue; fi',
    "scancel": 'echo "$@" > asked',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in COMMANDS.items():
        path = tmp_path / name / name
        path.parent.mkdir()
        path.write_text(f"#!/bin/bash\ncd {tmp_path}/told || exit 9\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "told").mkdir()
    return tmp_path


def start(folder: Path, code: str = "") -> subprocess.Popen[bytes]:
    path = os.pathsep.join([*(str(folder / name) for name in COMMANDS), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "host-[a-b]", "SLURM_JOB_NUM_NODES": "2"}
    words = ["bash", str(SCRIPT), "--preset", "demo", "--out", "a run"]
    return subprocess.Popen(words, env={"PATH": path, "CODE": code, **slurm}, stdout=subprocess.DEVNULL)


def test_it_is_bash() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0


def test_time_that_runs_out_asks_the_processes_and_puts_the_job_back(folder: Path) -> None:
    job = start(folder)
    while not (folder / "told" / "srun").exists():
        time.sleep(0.02)
    while not (folder / "told" / "asked").exists():  # the first may come before the script listens
        job.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    assert job.wait(timeout=20) == 1
    assert (folder / "told" / "asked").read_text() == "--signal=USR1 7\n"
    assert (folder / "told" / "requeue").read_text() == "requeue 7\n"
    words = (folder / "told" / "srun").read_text()
    assert "torchrun --nnodes 2 --nproc-per-node 1 --rdzv-id 7-0 --rdzv-backend c10d" in words
    assert "--rdzv-endpoint host-a:29500" in words
    assert "-m vqdm_train train --preset demo --out a run" in words


@pytest.mark.parametrize(("code", "back"), [("0", False), ("1", False), ("75", True)])
def test_only_what_was_stopped_goes_back(folder: Path, code: str, back: bool) -> None:
    assert start(folder, code).wait(timeout=20) == int(code)
    assert (folder / "told" / "requeue").exists() == back
