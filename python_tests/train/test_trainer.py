"""The trainer: learns, resumes to the bit, is stopped politely, keeps non-finite numbers out of the weights."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from tiny_run import ALONE, FROZEN, tiny_config, write_images
from vqdm_cuda import ImageTokenizer
from vqdm_train.checkpoint import newest_valid, verify
from vqdm_train.trainer import DivergedError, Trainer


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of 20 steps that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert Trainer(tiny_config(images), out, ALONE).run()
    return out


def stats(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]


def tensors(out: Path, step: int = 20) -> dict[str, Tensor]:
    """Everything a run has learnt: weights, averaged weights and the optimizer's state."""
    folder = out / "checkpoints" / f"step-{step:06d}"
    return {
        f"{path.relative_to(folder)}/{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in safetensors.torch.load_file(path).items()
    }


def assert_same_run(out: Path, expected: Path) -> None:
    ours, theirs = tensors(out), tensors(expected)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 100
    assert theirs.get("weights.safetensors/quantizer.inner.queue.filled", 1300) == 1300
    assert theirs.get("weights.safetensors/quantizer.inner.num_passes", 20) == 20
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    state = "checkpoints/step-000020/state.json"
    assert json.loads((out / state).read_text()) == json.loads((expected / state).read_text())


# a run ----------------------------------------------------------------------------------------------------------------


def test_twenty_steps_lower_the_loss(finished: Path) -> None:
    lines = stats(finished)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert lines[-1]["psnr_rgb"] > lines[0]["psnr_rgb"]


def test_stats_have_the_keys_of_the_contract(finished: Path) -> None:
    keys = {"step", "loss", "psnr_rgb", "utilization", "perplexity", "images_per_second", "data_wait", "lr"}
    terms = {"l1", "l2", "commitment", "codebook", "wasserstein"}
    for line in stats(finished):
        assert keys | terms <= line.keys()
        assert line["loss"] == pytest.approx(sum(line[term] for term in terms), rel=1e-5)
        assert 0 < line["utilization"] <= 1
        assert 1 <= line["perplexity"] <= 32
        assert line["data_wait"] >= 0


def test_run_directory(finished: Path, images: Path) -> None:
    assert sorted(path.name for path in (finished / "samples").iterdir()) == [
        "step-000000.png",
        "step-000010.png",
        "step-000020.png",
    ]
    with Image.open(finished / "samples" / "step-000020.png") as grid:
        assert grid.size == (2 * 4 * 32, 3 * 4 * 32)  # 2 images, 3 rows, enlarged four times
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-000015", "step-000020"]
    verify(finished / "model")
    assert Trainer(tiny_config(images), finished, ALONE).config == tiny_config(images)


def test_exported_model_is_the_average(finished: Path) -> None:
    model = ImageTokenizer.from_pretrained(finished / "model")
    average = safetensors.torch.load_file(finished / "checkpoints" / "step-000020" / "model" / "model.safetensors")
    weights = safetensors.torch.load_file(finished / "checkpoints" / "step-000020" / "weights.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, average[name])
    assert not torch.equal(average["encoder.conv_in.weight"], weights["encoder.conv_in.weight"])


def test_introduction(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(tiny_config(images, "steps=1"), tmp_path / "run", ALONE).run()
    said = capsys.readouterr().out
    assert "6 images" in said
    assert "85 tokens of 32 codes, 425 bits" in said  # 1 + 4 + 16 + 64 tokens of 5 bits
    assert str(tmp_path / "run") in said
    assert "Ctrl-C" in said
    assert "step 1/1  loss" in said


PLAIN = ["quantizer.kind=vector", "quantizer.wasserstein_weight=0", "quantizer.target=features"]


GAME = ["adversarial.weight=0.5", "discriminator.num_layers=2", "discriminator.base_channels=8"]


@pytest.mark.parametrize(
    "settings", [["precision=bfloat16"], ["precision=bfloat16", *GAME], ["channels_last=false", *GAME], PLAIN, FROZEN]
)
def test_other_ways_to_run(images: Path, tmp_path: Path, settings: list[str]) -> None:
    config = tiny_config(images, "steps=2", "log_every=1", *settings)
    assert Trainer(config, tmp_path, ALONE).run()
    assert [line["step"] for line in stats(tmp_path)] == [1, 2]
    saved = tensors(tmp_path, 2).values()
    assert all(torch.isfinite(value).all() for value in saved)
    assert {value.dtype for value in saved} == {torch.float32}


# resume ---------------------------------------------------------------------------------------------------------------


# 340 vectors a step: full at the fourth.
QUEUE = ["quantizer.queue_size=1300", "quantizer.grad_to=both", "quantizer.normalize=features"]


# Stopped while z still passes unquantised; codes are drawn from the plan.
SINKHORN = [
    *("quantizer.kind=sinkhorn", "quantizer.wasserstein_weight=0", "quantizer.scales=", "quantizer.num_heads=2"),
    *("quantizer.sinkhorn.start_step=15", "quantizer.sinkhorn.sample=true", "quantizer.sinkhorn.loss_form=ce"),
    *("optimizer.schedule=one_cycle", "optimizer.warmup_steps=50", "optimizer.betas=0.85,0.99"),
    "optimizer.clip_together=true",
]


# Codes that start at k-means and are moved outside the loss, some of them to vectors drawn at random.
MOVED = [
    *("quantizer.kind=ema", "quantizer.wasserstein_weight=0", "quantizer.scales=", "quantizer.init_std=null"),
    *("quantizer.init=kmeans", "quantizer.ema.decay=0.8", "quantizer.ema.revive_below=2"),
]


# The discriminator learns from step 4 on, and is heard from step 8 on, wholly from step 15 on: stopped in between.
ADVERSARIAL = [
    *(*GAME, "adversarial.start_step=3", "adversarial.warmup_steps=4", "adversarial.ramp_steps=8", "accumulate=2"),
    *(
        "adversarial.lecam=0.1",
        "adversarial.augment=true",
        "adversarial.consistency=1",
        "discriminator.norm=sync_batch",
    ),
]


@pytest.mark.parametrize(
    "settings", [[], ["channels_last=false", "model.dropout=0.2"], QUEUE, SINKHORN, MOVED, ADVERSARIAL]
)
def test_resume_equals_the_undisturbed_run(images: Path, tmp_path: Path, settings: list[str]) -> None:
    """Stopped by a signal in the middle, between two regular checkpoints, and started again by the same command."""
    config = tiny_config(images, *settings)
    Trainer(config, tmp_path / "whole", ALONE).run()
    first = stop_at(Trainer(config, tmp_path / "parts", ALONE), step=12)
    assert not first.run()
    torch.rand(7)  # another history of the global generator
    second = Trainer(config, tmp_path / "parts", ALONE)
    assert second.run()
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert [line["step"] for line in stats(tmp_path / "parts")] == [5, 10, 15, 20]
    saved = {name.partition("/")[0] for name in tensors(tmp_path / "parts")}
    of_the_game = {"discriminator.safetensors", "discriminator_optimizer.safetensors"}
    assert saved & of_the_game == (of_the_game if settings is ADVERSARIAL else set())


def test_resume_from_the_checkpoint_before_a_damaged_one(
    images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(images)
    assert not stop_at(Trainer(config, tmp_path, ALONE), step=12).run()
    weights = tmp_path / "checkpoints" / "step-000012" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "stats.jsonl").open("a").write('{"step": 1')  # torn by a kill
    assert Trainer(config, tmp_path, ALONE).run()
    said = capsys.readouterr().out
    assert "passing over a damaged checkpoint" in said
    assert "going on after step 10" in said
    assert_same_run(tmp_path, finished)
    assert [line["step"] for line in stats(tmp_path)] == [5, 10, 15, 20]


def test_more_steps_go_on_with_a_finished_run(images: Path, tmp_path: Path) -> None:
    Trainer(tiny_config(images, "steps=3"), tmp_path, ALONE).run()
    longer = Trainer(tiny_config(images, "steps=5"), tmp_path, ALONE)
    assert longer.run()
    assert longer.state.updates == 5
    again = Trainer(tiny_config(images, "steps=5"), tmp_path, ALONE)
    assert again.run()
    assert again.state.step == 5


def test_signal_saves_and_restores_the_handlers(images: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = stop_at(Trainer(tiny_config(images), tmp_path, ALONE), step=3)
    assert not trainer.run()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    newest = newest_valid(tmp_path / "checkpoints", print)
    assert newest is not None
    assert newest.name == "step-000003"


def stop_at(trainer: Trainer, step: int) -> Trainer:
    """Sends this process a SIGTERM while the trainer is in that step."""
    update = trainer.state.ema.update

    def update_and_stop(tokenizer: ImageTokenizer, num_updates: int) -> None:
        update(tokenizer, num_updates)
        if trainer.state.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.state.ema.update = update_and_stop  # type: ignore[method-assign]
    return trainer


# not finite -----------------------------------------------------------------------------------------------------------


def poison(trainer: Trainer, steps: set[int]) -> None:
    """The first image of these steps' batches holds a NaN."""
    fill = trainer.stream._fill

    def poisoned(row: Tensor, step: int, position: int) -> tuple[int, int]:
        filled = fill(row, step, position)
        if step in steps and position == 0:
            row[0, 0, 0] = torch.nan
        return filled

    trainer.stream._fill = poisoned  # type: ignore[method-assign]


def test_not_finite_never_reaches_the_weights(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(images, "steps=4", "checkpoint.save_every=1", "checkpoint.keep_last=9", "log_every=1")
    trainer = Trainer(config, tmp_path, ALONE)
    poison(trainer, {2})
    assert trainer.run()
    said = capsys.readouterr().out
    assert "step 3: weights not updated, because not finite: loss, " in said
    (report,) = (json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines())
    assert report["step"] == 3
    assert "loss" in report["not_finite"]
    assert report["images"] == trainer.stream.names(2)
    before, after, later = tensors(tmp_path, 2), tensors(tmp_path, 3), tensors(tmp_path, 4)
    learnt = [name for name, _ in trainer.state.tokenizer.named_parameters()]
    for name in [f"weights.safetensors/{n}" for n in learnt] + [f"model/model.safetensors/{n}" for n in learnt]:
        assert torch.equal(before[name], after[name]), name
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("optimizer"))
    assert not torch.equal(
        after["weights.safetensors/encoder.conv_in.weight"], later["weights.safetensors/encoder.conv_in.weight"]
    )
    assert [line["step"] for line in stats(tmp_path)] == [1, 2, 4]
    assert (trainer.state.step, trainer.state.updates) == (4, 3)


def test_stops_after_several_in_a_row(images: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(images, "max_skipped_steps=3", "checkpoint.save_every=4"), tmp_path, ALONE)
    poison(trainer, {1, 2, *range(4, 20)})
    with pytest.raises(DivergedError, match=r"3 steps in a row, up to step 7, .* smaller optimizer.lr"):
        trainer.run()
    assert all(torch.isfinite(value).all() for value in trainer.state.tokenizer.state_dict().values())
    again = Trainer(tiny_config(images, "max_skipped_steps=3", "checkpoint.save_every=4"), tmp_path, ALONE)
    assert again.run()  # without the poison


# the run directory ----------------------------------------------------------------------------------------------------


def test_another_config_is_refused(images: Path, finished: Path) -> None:
    for setting, said in [("optimizer.lr=9", r"optimizer.lr \(.* -> 9.0\)"), ("seed=4", r"seed \(0 -> 4\)")]:
        with pytest.raises(ValueError, match=f"only steps and device may change: {said}"):
            Trainer(tiny_config(images, setting), finished, ALONE)
    Trainer(tiny_config(images, "device=cpu"), finished, ALONE)


def test_a_folder_of_something_else_is_refused(images: Path) -> None:
    before = sorted(images.iterdir())
    with pytest.raises(ValueError, match="--out: expected a new folder or one that holds a run"):
        Trainer(tiny_config(images), images, ALONE)
    assert sorted(images.iterdir()) == before


def test_a_run_in_use_is_refused(images: Path, tmp_path: Path) -> None:
    first = Trainer(tiny_config(images), tmp_path, ALONE)
    with pytest.raises(ValueError, match="--out: expected a run that no other process is working on"):
        Trainer(tiny_config(images), tmp_path, ALONE)
    del first


def test_frozen_codes_stay_and_are_exported(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, "steps=3", *FROZEN)
    trainer = Trainer(config, tmp_path, ALONE)
    before = trainer.state.tokenizer.quantizer.codebook.clone()
    assert trainer.run()
    assert torch.equal(trainer.state.tokenizer.quantizer.codebook, before)
    assert torch.equal(ImageTokenizer.from_pretrained(tmp_path / "model").quantizer.codebook, before)
