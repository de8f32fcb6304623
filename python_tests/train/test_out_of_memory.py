"""A run whose step does not fit into memory says in one sentence what would."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from tiny_run import tiny_config, tiny_flags, write_images
from vqdm_train import out_of_memory
from vqdm_train.cli import main
from vqdm_train.plan import make_plan
from vqdm_train.step import TrainingStep


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 2)


def train(images: Path, out: Path, *settings: str) -> Result:
    words = [word for setting in settings for word in ("--set", setting)]
    return CliRunner().invoke(main, ["train", *tiny_flags(images), *words, "--device", "cpu", "--out", str(out)])


@pytest.mark.parametrize(
    ("room", "said"),  # images, by the plan, that the memory holds
    [
        (5, "5 would: a new run with --batch-size 10, or the same batch in parts with --set accumulate=3"),
        (1, "1 would: a new run with --batch-size 2, or the same batch in parts with --set accumulate=12"),
        (0, "nor would one: a smaller model, or checkpoint_activations=true, needs less"),
        (100, "3 would: a new run with --batch-size 6, or the same batch in parts with --set accumulate=4"),
    ],
)
def test_a_step_that_does_not_fit(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, said: str
) -> None:
    """12 images in two parts: 6 at once."""
    settings = ("batch_size=12", "accumulate=2")
    plan = make_plan(tiny_config(images, *settings))
    memory = int((plan.total(room) + max(plan.step_memory_per_image.values()) // 2) / 0.9)
    monkeypatch.setattr(out_of_memory, "device_memory", lambda device: memory)
    passes, run = [], TrainingStep.run

    def fails_at_the_third(step: TrainingStep, batches: object) -> object:
        passes.append(step.state.step)
        if len(passes) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return run(step, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingStep, "run", fails_at_the_third)
    result = train(images, tmp_path / "run", *settings, "steps=4", "checkpoint.save_every=2")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if "out of memory" in line]
    assert line.startswith("Error: out of memory: 6 images at once did not fit into the 0.")
    assert line.endswith(f" GiB of cpu; {said}")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


def test_other_errors_stay_what_they_are(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(step: TrainingStep, batches: object) -> None:
        raise RuntimeError("shapes do not agree")

    monkeypatch.setattr(TrainingStep, "run", fails)
    assert isinstance(train(images, tmp_path / "run").exception, RuntimeError)
