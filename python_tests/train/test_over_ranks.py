"""Training by two processes (gloo) equals training by one on the same global batches."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tiny_run import tiny_flags, write_images

ROOT = Path(__file__).parents[2]


# Vectors of two steps; averages of features, from the k-means of the first ones.
QUEUE = ("quantizer.queue_size=680",)
EMA = (
    *("quantizer.kind=ema", "quantizer.scales=", "quantizer.wasserstein_weight=0", "quantizer.init_std=null"),
    *("quantizer.init=kmeans", "quantizer.ema.decay=0.8"),
)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("settings", [(), QUEUE, EMA])
def test_two_processes_equal_one(tmp_path: Path, settings: tuple[str, ...]) -> None:
    flags = [*tiny_flags(write_images(tmp_path / "images")), "--steps", "6", "--device", "cpu"]
    flags += [word for setting in settings for word in ("--set", setting)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "train")]),
        "OMP_NUM_THREADS": "1",
    }

    def train(name: str, *launcher: str) -> dict[str, torch.Tensor]:
        command = [sys.executable, *launcher, "-m", "vqdm_train", "train", *flags, "--out", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return safetensors.torch.load_file(tmp_path / name / "checkpoints" / "step-000006" / "weights.safetensors")

    one = train("one")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    two = train("two", *launcher)
    assert one.keys() == two.keys()
    if settings:
        # The first process saves, and what it saves is the state of both: the last step again, from the one before.
        shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-000006")
        again = train("two", *launcher)
        assert all(torch.equal(again[name], value) for name, value in two.items())
    if settings == QUEUE:
        # The same vectors, in the order of the processes.
        pair = [run.pop("quantizer.inner.queue.vectors").double() for run in (one, two)]
        for rows in pair:
            assert rows.abs().sum(1).min() > 0
        torch.testing.assert_close(pair[1].T.cov(), pair[0].T.cov(), rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(pair[1].mean(0), pair[0].mean(0), rtol=1e-4, atol=2e-5)
    for name, value in one.items():
        # Sums over two halves of a batch round differently; AdamW turns that into a few steps of float32.
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-5, msg=name)
