"""Whether two runs are the same to the bit: all that their newest checkpoints hold, and what they told."""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

__all__ = ["assert_same_run", "saved_tensors"]


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a step folder, by file and name."""
    return {
        f"{path.relative_to(folder)}/{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in safetensors.torch.load_file(path).items()
    }


def assert_same_run(out: Path, expected: Path) -> None:
    """The newest checkpoint of `out` equals that of `expected`, and each logged step and sample is there once."""
    ours, theirs = (max((run / "checkpoints").glob("step-*")) for run in (out, expected))
    assert ours.name == theirs.name
    ours_tensors, theirs_tensors = saved_tensors(ours), saved_tensors(theirs)
    assert ours_tensors.keys() == theirs_tensors.keys()
    assert len(theirs_tensors) > 100
    for name, value in theirs_tensors.items():
        assert torch.equal(ours_tensors[name], value), name
    assert json.loads((ours / "state.json").read_text()) == json.loads((theirs / "state.json").read_text())
    assert _steps(out) == _steps(expected)
    for folder in ("samples", "model"):
        assert _names(out / folder) == _names(expected / folder)


def _steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "stats.jsonl").read_text().splitlines()]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
