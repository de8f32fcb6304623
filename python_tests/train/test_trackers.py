"""vqdm_train.trackers: TensorBoard read back from its files, Weights & Biases by a stand-in, neither installed."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wandb_stand_in
from tiny_run import ALONE, tiny_config, write_images
from vqdm_train.trackers import TrackingConfig, check_installed, open_trackers
from vqdm_train.trainer import Trainer

STATS = {"loss": 1.5, "l1": 0.5, "utilization_scale_4": 0.25, "gradient": 2.0, "lr": 1e-3}


def grid(value: int = 7) -> Image.Image:
    return Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8))


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def events(out: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(out / "tensorboard")).Reload()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is optional")
def test_tensorboard_has_numbers_and_grids(tmp_path: Path) -> None:
    (tracker,) = open_trackers(TrackingConfig(tensorboard=True), tmp_path, {}, first_step=0)
    tracker.grid(0, grid())
    tracker.stats(10, STATS)
    tracker.stats(20, STATS | {"loss": 1.25, "adversarial": 0.125})
    tracker.close()
    read = events(tmp_path)
    assert sorted(read.Tags()["scalars"]) == [
        "codes/utilization_scale_4",
        "gradients/gradient",
        "losses/adversarial",
        "losses/l1",
        "overview/loss",
        "speed/lr",
    ]
    assert [(event.step, event.value) for event in read.Scalars("overview/loss")] == [(10, 1.5), (20, 1.25)]
    assert [(event.step, event.value) for event in read.Scalars("losses/adversarial")] == [(20, 0.125)]
    (image,) = read.Images("samples")
    assert (image.step, image.width, image.height) == (0, 6, 4)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is optional")
@pytest.mark.parametrize(("first_step", "kept"), [(10, [(10, 1.5)]), (0, [])])
def test_tensorboard_of_a_resumed_run_has_each_step_once(
    tmp_path: Path, first_step: int, kept: list[tuple[int, float]]
) -> None:
    (tracker,) = open_trackers(TrackingConfig(tensorboard=True), tmp_path, {}, first_step=0)
    for step in (10, 20, 30):
        tracker.stats(step, STATS)
    tracker.close()
    for file in (tmp_path / "tensorboard").iterdir():  # names hold the second: an older one comes first
        os.rename(file, file.with_name("events.out.tfevents.1000000000.host.1.0"))
    (tracker,) = open_trackers(TrackingConfig(tensorboard=True), tmp_path, {}, first_step=first_step)
    tracker.stats(20, STATS | {"loss": 3.0})
    tracker.close()
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("overview/loss")] == [*kept, (20, 3.0)]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is optional")
def test_a_run_is_followed(tmp_path: Path) -> None:
    config = tiny_config(write_images(tmp_path / "images"), "steps=4", "log_every=2", "tracking.tensorboard=true")
    assert Trainer(config, tmp_path / "run", ALONE).run()
    read = events(tmp_path / "run")
    assert [event.step for event in read.Scalars("overview/psnr_rgb")] == [2, 4]
    assert [event.step for event in read.Scalars("codes/perplexity_scale_8")] == [2, 4]
    assert [event.step for event in read.Images("samples")] == [0, 4]


# --- Weights & Biases -------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Stands in for the package; returns what it was told."""
    return wandb_stand_in.install(monkeypatch)


def test_wandb_has_numbers_and_grids(tmp_path: Path, wandb: list[tuple[str, Any]]) -> None:
    out = tmp_path / "my run"
    out.mkdir()
    (tracker,) = open_trackers(TrackingConfig(wandb="tokenizers"), out, {"seed": 0}, first_step=0)
    tracker.grid(0, grid())
    tracker.stats(10, {"loss": 1.5, "lr": 0.1})
    tracker.close()
    (_, options), *rest = wandb
    assert options["id"].startswith("my-run-")
    del options["id"]
    assert options == {
        "project": "tokenizers",
        "name": "my run",
        "resume": "allow",
        "dir": str(out),
        "config": {"seed": 0},
    }
    assert rest == [
        ("log", (0, {"samples": ("image", (6, 4))})),
        ("log", (10, {"overview/loss": 1.5, "speed/lr": 0.1})),
        ("finish", None),
    ]


def test_wandb_knows_a_run_again_and_others_apart(tmp_path: Path, wandb: list[tuple[str, Any]]) -> None:
    for name in ("a/run", "a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        open_trackers(TrackingConfig(wandb="tokenizers"), tmp_path / name, {}, first_step=0)
    first, again, other = (options["id"] for _, options in wandb)
    assert first == again
    assert first != other


# --- bad --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "package"), [({"tensorboard": True}, "tensorboard"), ({"wandb": "p"}, "wandb")])
def test_an_absent_package_is_named_before_training_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any], package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    said = f"expected the package {package} for tracking.{package}, which is not installed; `pip install {package}`"
    with pytest.raises(ValueError, match=said):
        check_installed(TrackingConfig(**setting))
    flags = [f"tracking.{key}={str(value).lower()}" for key, value in setting.items()]
    config = tiny_config(write_images(tmp_path / "images"), "steps=2", *flags)
    with pytest.raises(ValueError, match=said):
        Trainer(config, tmp_path / "run", ALONE)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wandb": ""}, "tracking: expected wandb to be the name of a project or null, got an empty string"),
        ({"usage_alarm": -0.1}, r"tracking: expected usage_alarm in \[0, 1\], got -0.1"),
        ({"usage_alarm": 1.5}, r"tracking: expected usage_alarm in \[0, 1\], got 1.5"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackingConfig(**options)


def test_nothing_is_opened_unasked(tmp_path: Path) -> None:
    assert open_trackers(TrackingConfig(), tmp_path, {}, first_step=0) == []
    assert not list(tmp_path.iterdir())
