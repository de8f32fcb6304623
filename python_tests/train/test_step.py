"""The training step: its gradients written out, its two networks kept apart, its micro-batches, its ranks."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import gloo_ranks
from tiny_run import ALONE, tiny_config
from vqdm_train.config import Config
from vqdm_train.distributed import World
from vqdm_train.losses import adaptive_weight, discriminator_loss, generator_loss, reconstruction_loss
from vqdm_train.model import build_tokenizer
from vqdm_train.optimizer import set_rates
from vqdm_train.state import TrainingState
from vqdm_train.step import TrainingStep

SMALL = ("data.image_size=16", "quantizer.scales=1,2,4", "optimizer.grad_clip=null")
ADVERSARIAL = (
    *("adversarial.weight=0.5", "discriminator.num_layers=1", "discriminator.base_channels=8"),
    *("losses.l1=1", "losses.l2=1"),
)
VANILLA = ("quantizer.kind=vector", "quantizer.wasserstein_weight=0")  # all of whose losses are means over vectors


def build(config: Config, dtype: torch.dtype = torch.float64, world: World = ALONE) -> TrainingStep:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config.model, config.quantizer, 3).to(dtype)
    state = TrainingState(tokenizer, config, world)
    if state.adversary is not None:
        state.adversary.state.to(dtype)
    return TrainingStep(state, config, world)


def config_of(*settings: str) -> Config:
    return tiny_config(Path("images"), *SMALL, "discriminator_optimizer.grad_clip=null", *settings)


def pictures(count: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")


def weights(step: TrainingStep) -> dict[str, Tensor]:
    networks = {"tokenizer": step.tokenizer.state_dict()}
    if step.adversary is not None:
        networks["adversary"] = step.adversary.state.state_dict()
    return {f"{name}.{key}": value.clone() for name, state in networks.items() for key, value in state.items()}


# gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [True, False])
def test_gradients_are_those_of_the_losses_written_out(adaptive: bool) -> None:
    config = config_of(*ADVERSARIAL, f"adversarial.adaptive={str(adaptive).lower()}")
    step, twin = build(config), build(config)
    images = pictures(4)
    outcome = step.run([images])

    tokenizer, adversary = twin.tokenizer.train(), twin.adversary
    assert adversary is not None
    reconstruction, quantized = tokenizer(images)
    pixels, _ = reconstruction_loss(images, reconstruction, config.losses)
    judged = generator_loss(adversary.discriminator(reconstruction), config.adversarial.form)
    weight = torch.tensor(config.adversarial.weight, dtype=torch.float64)
    if adaptive:
        layer = tokenizer.decoder.last_layer
        at_pixels, at_judged = (torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in (pixels, judged))
        weight = weight * adaptive_weight(at_pixels, at_judged, config.adversarial)
    loss = pixels + quantized.loss + weight * judged
    gradients = torch.autograd.grad(loss, list(tokenizer.parameters()))
    for (name, parameter), expected in zip(step.tokenizer.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12, msg=name)
    assert outcome.terms["loss"].item() == pytest.approx(loss.item(), rel=1e-9)

    real, fake = (adversary.discriminator(x) for x in (images, reconstruction.detach()))
    lesson = discriminator_loss(real, fake, config.adversarial.form)
    theirs = torch.autograd.grad(lesson, list(adversary.discriminator.parameters()))
    assert step.adversary is not None
    for parameter, expected in zip(step.adversary.discriminator.parameters(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
    assert outcome.terms["discriminator"].item() == pytest.approx(lesson.item(), rel=1e-9)


def test_the_discriminator_is_frozen_in_the_tokenizers_step() -> None:
    step = build(config_of(*ADVERSARIAL))
    adversary = step.adversary
    assert adversary is not None
    marks = [torch.randn_like(p) for p in adversary.discriminator.parameters()]
    for parameter, mark in zip(adversary.discriminator.parameters(), marks, strict=True):
        parameter.grad = mark.clone()
    leaf = pictures(2).requires_grad_()
    adversary.judge(leaf).backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    for parameter, mark in zip(adversary.discriminator.parameters(), marks, strict=True):
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, mark)


def test_warm_up_trains_the_discriminator_alone() -> None:
    plain = build(config_of("losses.l1=1", "losses.l2=1"))
    warming = build(
        config_of(*ADVERSARIAL, "adversarial.start_step=1", "adversarial.warmup_steps=2", "adversarial.ramp_steps=2")
    )
    assert warming.adversary is not None
    for number in range(3):
        before = [p.clone() for p in warming.adversary.discriminator.parameters()]
        terms = [step.run([pictures(4, seed=number)]).terms for step in (plain, warming)]
        moved = [
            not torch.equal(a, b) for a, b in zip(before, warming.adversary.discriminator.parameters(), strict=True)
        ]
        # All but the last bias, whose gradient is 0 while no logit has left [-1, 1].
        assert sum(moved) >= len(moved) - 1 if number >= 1 else not any(moved)
        assert ("discriminator" in terms[1]) == (number >= 1)
        assert "adversarial" not in terms[1]
        same = [
            torch.equal(a, b) for a, b in zip(plain.tokenizer.parameters(), warming.tokenizer.parameters(), strict=True)
        ]
        assert all(same), number
        for step in (plain, warming):
            step.state.step += 1
    assert warming.run([pictures(4)]).terms["adversarial"] != 0  # half of it, on the ramp


# not finite -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ema", "online", "wasserstein"])
def test_a_step_that_is_not_finite_changes_nothing(kind: str) -> None:
    settings = {
        "ema": ("quantizer.kind=ema", "quantizer.wasserstein_weight=0", "quantizer.scales="),
        "online": ("quantizer.kind=online", "quantizer.wasserstein_weight=0", "quantizer.scales="),
        "wasserstein": ("quantizer.queue_size=168",),
    }[kind]
    step = build(config_of(*ADVERSARIAL, *settings, "discriminator.norm=sync_batch", "adversarial.lecam=0.1"))
    assert step.run([pictures(4)]).updated
    before = weights(step)
    bad = pictures(4, seed=6)
    bad[1, 0, 3, 3] = torch.nan
    outcome = step.run([bad])
    assert not outcome.updated
    assert not torch.isfinite(outcome.terms["loss"])
    after = weights(step)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert step.run([pictures(4, seed=7)]).updated
    assert any(not torch.equal(weights(step)[name], value) for name, value in before.items())


# micro-batches and ranks ----------------------------------------------------------------------------------------------

STEPS, BATCH = 10, 8


def descend(step: TrainingStep, batches: Iterable[Iterable[Tensor]]) -> dict[str, Tensor]:
    """Ten steps of plain gradient descent: AdamW would turn rounding into whole steps where a gradient is nearly 0."""
    state = step.state
    optimizers = [state.optimizer] + ([state.adversary.optimizer] if state.adversary is not None else [])
    plain = [torch.optim.SGD(optimizer.param_groups) for optimizer in optimizers]
    for optimizer in plain:
        optimizer.defaults["betas"] = (0.0, 0.0)  # which the schedule asks for
        for group in optimizer.param_groups:
            group["peak_lr"] = 0.02
    state.optimizer = plain[0]  # type: ignore[assignment]
    if state.adversary is not None:
        state.adversary.optimizer = plain[1]  # type: ignore[assignment]
    for micro_batches in batches:
        assert step.run(micro_batches).updated
        state.step += 1
    return weights(step)


def global_batches(dtype: torch.dtype) -> list[Tensor]:
    return [pictures(BATCH, dtype, seed=number) for number in range(STEPS)]


def test_micro_batches_add_up_to_the_batch() -> None:
    settings = (*ADVERSARIAL, *VANILLA, "adversarial.adaptive=false", f"batch_size={BATCH}")
    whole = descend(build(config_of(*settings)), ([batch] for batch in global_batches(torch.float64)))
    parts = descend(
        build(config_of(*settings, "accumulate=4")), (batch.chunk(4) for batch in global_batches(torch.float64))
    )
    for name, value in whole.items():
        if value.is_floating_point() and not name.endswith(("usage", "_mean")):
            torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-11, msg=name)


RANKED = {
    "whole": ADVERSARIAL,
    "accumulate": (*ADVERSARIAL, "accumulate=2", "discriminator.norm=sync_batch", "adversarial.lecam=0.1"),
}


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_equal_one_process(num_ranks: int, tmp_path: Path) -> None:
    """Both networks after ten steps, whatever the accumulation: the same global micro-batches, split among ranks."""
    ranks = gloo_ranks.run(_train_rank, num_ranks, tmp_path)
    for key, value in _train_rank(0, 1).items():
        tolerance = 1e-10 if value.dtype == torch.float64 else 1e-5
        if not value.is_floating_point():
            tolerance = 0.0
        for rank in ranks:
            torch.testing.assert_close(rank[key], value, rtol=tolerance, atol=tolerance, msg=key)
            assert torch.equal(rank[key], ranks[0][key]), key


def _train_rank(rank: int, num_ranks: int) -> dict[str, Tensor]:
    world = World(rank=rank, size=num_ranks, device=torch.device("cpu"))
    out: dict[str, Tensor] = {}
    for name, settings in RANKED.items():
        for dtype in (torch.float64, torch.float32):
            config = config_of(*settings, f"batch_size={BATCH}")
            batches = (
                [micro.chunk(num_ranks)[rank] for micro in batch.chunk(config.accumulate)]
                for batch in global_batches(dtype)
            )
            learnt = descend(build(config, dtype, world), batches)
            out |= {f"{name}.{dtype}.{key}": value for key, value in learnt.items()}
    return out


def test_rates_of_both_optimizers_follow_the_schedule() -> None:
    step = build(
        config_of(*ADVERSARIAL, "optimizer.schedule=step", "optimizer.decay_steps=3", "optimizer.warmup_steps=1")
    )
    assert step.adversary is not None
    for number, factor in ((2, 1.0), (3, 0.1)):
        for optimizer in (step.state.optimizer, step.adversary.optimizer):
            set_rates(optimizer, number, 10, step.config.optimizer)
            for group in optimizer.param_groups:
                assert group["lr"] == pytest.approx(factor * group["peak_lr"])
                assert group["betas"] == optimizer.defaults["betas"]
