"""The optimizers, their schedule, and the average of the weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tiny_run import FROZEN, tiny_config
from vqdm_cuda import ImageTokenizer
from vqdm_train.config import Config
from vqdm_train.ema import EMA
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

IMAGES = Path("images")  # none is read


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


def test_clipping_bounds_each_norm_or_both_together() -> None:
    config = tiny_config(IMAGES)
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


def test_parameter_groups() -> None:
    config = tiny_config(IMAGES, "optimizer.weight_decay=0.5", "optimizer.codebook_lr=7")
    tokenizer = tiny_tokenizer(config)
    decayed, plain, codebook, linear_map = build_optimizer(tokenizer, config.optimizer).param_groups
    assert linear_map["params"] == []
    assert [p.shape for p in codebook["params"]] == [(32, 4)]
    assert [g["weight_decay"] for g in (decayed, plain, codebook)] == [0.5, 0.0, 0.0]
    assert [g["peak_lr"] for g in (decayed, plain, codebook)] == [config.optimizer.lr, config.optimizer.lr, 7.0]
    assert {p.ndim for p in plain["params"]} == {1}
    count = sum(len(g["params"]) for g in (decayed, plain, codebook))
    assert count == len(list(tokenizer.parameters()))


def test_the_linear_map_on_the_codes_is_decayed_and_learns_with_them() -> None:
    config = tiny_config(
        IMAGES, "quantizer.kind=sinkhorn", "quantizer.wasserstein_weight=0", "optimizer.weight_decay=0.5"
    )
    tokenizer = tiny_tokenizer(config)
    groups = build_optimizer(tokenizer, config.optimizer).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups[2:]] == [[(32, 4), (4,)], [(4, 4)]]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.0, 0.5]
    assert groups[2]["peak_lr"] == groups[3]["peak_lr"] == config.optimizer.codebook_lr


def test_a_frozen_codebook_leaves_its_group_empty() -> None:
    tokenizer = tiny_tokenizer(tiny_config(IMAGES, *FROZEN))
    groups = build_optimizer(tokenizer, OptimizerConfig()).param_groups
    assert [len(group["params"]) > 0 for group in groups] == [True, True, False, False]
    assert sum(len(group["params"]) for group in groups) == len(list(tokenizer.parameters()))


def test_optimizer_state_comes_back() -> None:
    config = tiny_config(IMAGES)
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


def test_ema_is_the_weighted_mean() -> None:
    tokenizer = tiny_tokenizer(tiny_config(IMAGES)).double()
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
