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
from torch import Tensor, nn

from tiny_run import ALONE, tiny_config, write_images
from vqdm_cuda import Encoder, ImageTokenizer
from vqdm_train.checkpoint import newest_valid, verify
from vqdm_train.config import Config
from vqdm_train.ema import EMA
from vqdm_train.losses import LossConfig, batch_psnr, reconstruction_loss
from vqdm_train.model import build_tokenizer
from vqdm_train.optimizer import (
    DiscriminatorOptimizerConfig,
    OptimizerConfig,
    build_discriminator_optimizer,
    build_optimizer,
    clip_gradients,
    load_optimizer,
    optimizer_tensors,
    set_rates,
)
from vqdm_train.schedule import schedule
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


FROZEN = [
    *("quantizer.freeze_codebook=true", "quantizer.codebook_weight=0", "quantizer.grad_to=features"),
    *("quantizer.target=gaussian", "quantizer.target_std=0.65"),
]


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


# parts ----------------------------------------------------------------------------------------------------------------


def test_schedule() -> None:
    config = OptimizerConfig(warmup_steps=10, final_lr_ratio=0.1)
    factors, beta1 = zip(*(schedule(step, 100, config, config.betas[0]) for step in range(101)), strict=True)
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(0.1 + 0.9 * (1 + torch.cos(torch.tensor(torch.pi * 0.09)).item()) / 2, rel=1e-6)
    assert factors[50] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert list(factors[9:]) == sorted(factors[9:], reverse=True)
    assert set(beta1) == {0.9}


@pytest.mark.parametrize("steps", [1, 20, 100, 5000])
def test_one_cycle_is_that_of_torch(steps: int) -> None:
    config = OptimizerConfig(schedule="one_cycle", betas=(0.85, 0.999))
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    if steps == 100:  # where torch's own divides by 0: the rise is the first step alone
        assert schedule(0, steps, config, 0.85) == (1.0, 0.85)
        return
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=0.01)
    for step in range(steps):
        group = optimizer.param_groups[0]
        assert schedule(step, steps, config, 0.85) == pytest.approx((group["lr"], group["betas"][0]), rel=1e-9)
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


def test_one_cycle_moves_each_optimizer_about_its_own_beta1() -> None:
    config = OptimizerConfig(schedule="one_cycle", betas=(0.85, 0.999), warmup_steps=50)
    discriminator = build_discriminator_optimizer(nn.Linear(2, 2), DiscriminatorOptimizerConfig(betas=(0.5, 0.9)))
    beta1 = []
    for step in range(1000):
        set_rates(discriminator, step, 1000, config)
        beta1.append(discriminator.param_groups[0]["betas"][0])
    assert (min(beta1), max(beta1)) == pytest.approx((0.5, 0.6))


def test_clipping_bounds_each_norm_or_both_together(images: Path) -> None:
    config = tiny_config(images)
    for together in (False, True):
        tokenizer = tiny_tokenizer(config)
        options = OptimizerConfig(grad_clip=0.5, clip_together=together)
        optimizer = build_optimizer(tokenizer, options)
        parameters, codebook = list(tokenizer.parameters()), tokenizer.quantizer.codebook_parameters()
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        all_before, codes_before = grad_norm(parameters), grad_norm(codebook)
        model, codes = clip_gradients(optimizer, options)
        assert codes.item() == pytest.approx(codes_before)
        assert model.square().item() + codes.square().item() == pytest.approx(all_before**2)
        if together:
            assert grad_norm(parameters) == pytest.approx(0.5, rel=1e-4)
            assert grad_norm(codebook) == pytest.approx(0.5 * codes_before / all_before, rel=1e-4)
        else:
            assert grad_norm(parameters) == pytest.approx(0.5 * 2**0.5, rel=1e-4)
            assert grad_norm(codebook) == pytest.approx(0.5, rel=1e-4)


def grad_norm(parameters: list[torch.nn.Parameter]) -> float:
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm().item()


def tiny_tokenizer(config: Config) -> ImageTokenizer:
    return build_tokenizer(config.model, config.quantizer, 3)


def test_parameter_groups(images: Path) -> None:
    config = tiny_config(images, "optimizer.weight_decay=0.5", "optimizer.codebook_lr=7")
    tokenizer = tiny_tokenizer(config)
    decayed, plain, codebook, linear_map = build_optimizer(tokenizer, config.optimizer).param_groups
    assert linear_map["params"] == []
    assert [p.shape for p in codebook["params"]] == [(32, 4)]
    assert [g["weight_decay"] for g in (decayed, plain, codebook)] == [0.5, 0.0, 0.0]
    assert [g["peak_lr"] for g in (decayed, plain, codebook)] == [config.optimizer.lr, config.optimizer.lr, 7.0]
    assert {p.ndim for p in plain["params"]} == {1}
    count = sum(len(g["params"]) for g in (decayed, plain, codebook))
    assert count == len(list(tokenizer.parameters()))


def test_the_linear_map_on_the_codes_is_decayed_and_learns_with_them(images: Path) -> None:
    config = tiny_config(images, "quantizer.kind=sinkhorn", *PLAIN[1:], "optimizer.weight_decay=0.5")
    tokenizer = tiny_tokenizer(config)
    groups = build_optimizer(tokenizer, config.optimizer).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups[2:]] == [[(32, 4), (4,)], [(4, 4)]]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.0, 0.5]
    assert groups[2]["peak_lr"] == groups[3]["peak_lr"] == config.optimizer.codebook_lr


def test_a_frozen_codebook_leaves_its_group_empty(images: Path) -> None:
    tokenizer = tiny_tokenizer(tiny_config(images, *FROZEN))
    groups = build_optimizer(tokenizer, OptimizerConfig()).param_groups
    assert [len(group["params"]) > 0 for group in groups] == [True, True, False, False]
    assert sum(len(group["params"]) for group in groups) == len(list(tokenizer.parameters()))


def test_frozen_codes_stay_and_are_exported(images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, "steps=3", *FROZEN)
    trainer = Trainer(config, tmp_path, ALONE)
    before = trainer.state.tokenizer.quantizer.codebook.clone()
    assert trainer.run()
    assert torch.equal(trainer.state.tokenizer.quantizer.codebook, before)
    assert torch.equal(ImageTokenizer.from_pretrained(tmp_path / "model").quantizer.codebook, before)


def test_optimizer_state_comes_back(images: Path) -> None:
    config = tiny_config(images)
    tokenizer = tiny_tokenizer(config)
    optimizer = build_optimizer(tokenizer, config.optimizer)
    for parameter in tokenizer.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    saved = optimizer_tensors(optimizer, tokenizer)
    kept = {name: value.clone() for name, value in saved.items()}
    other = build_optimizer(tokenizer, config.optimizer)
    load_optimizer(other, tokenizer, saved)
    optimizer.step()
    assert all(torch.equal(saved[name], kept[name]) for name in kept)  # copies, not views
    again = optimizer_tensors(other, tokenizer)
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], kept[name]) for name in kept)


def test_ema_is_the_weighted_mean(images: Path) -> None:
    tokenizer = tiny_tokenizer(tiny_config(images)).double()
    ema = EMA(tokenizer, 0.5)
    name = "encoder.conv_in.weight"
    weight = tokenizer.get_parameter(name)
    expected = weight.detach().clone()
    for n in range(6):
        with torch.no_grad():
            weight.add_(1.0)
        ema.update(tokenizer, n)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(ema.model.get_parameter(name), expected, rtol=1e-14, atol=0)


def test_fresh_networks_are_almost_linear(images: Path) -> None:
    """Twice the contrast of an image gives twice the change at the first block, and every bias starts at 0."""
    encoder = tiny_tokenizer(tiny_config(images, "model.residual_gain=0")).encoder
    assert isinstance(encoder, Encoder)
    assert all((p == 0).all() for name, p in encoder.named_parameters() if name.endswith("conv1.bias"))
    x = torch.rand(1, 3, 32, 32)
    y = encoder.down[0](encoder.conv_in(x))
    torch.testing.assert_close(encoder.down[0](encoder.conv_in(2 * x)), 2 * y, rtol=1e-5, atol=1e-6)


def test_losses() -> None:
    x, y = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    loss, terms = reconstruction_loss(x, y, LossConfig(l1=2.0, l2=3.0))
    assert loss.item() == 2 * 0.5 + 3 * 0.25
    assert {name: term.item() for name, term in terms.items()} == {"l1": 1.0, "l2": 0.75}
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms.values())
    assert batch_psnr(x, y.detach()).item() == pytest.approx(10 * torch.log10(torch.tensor(16.0)).item())
