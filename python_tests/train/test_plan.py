"""Plans: what they count is what a run takes, they need no memory and no files, and the command says it."""

import dataclasses
import functools
import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from shrunken import shrunken
from vqdm_train.cli import main
from vqdm_train.config import Config
from vqdm_train.distributed import World
from vqdm_train.dry_step import build_step, dry_run, measure_step
from vqdm_train.live_memory import LiveMemory
from vqdm_train.model import build_tokenizer
from vqdm_train.plan import Plan, largest_batch, make_plan
from vqdm_train.presets import PRESETS
from vqdm_train.state import TrainingState
from vqdm_train.step import TrainingStep

CPU = World(rank=0, size=1, device=torch.device("cpu"))


def real_step(config: Config) -> TrainingStep:
    tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels)
    if config.channels_last:
        tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainingStep(TrainingState(tokenizer, config, CPU), config, CPU)


# counting ------------------------------------------------------------------------------------------------------------


def test_live_memory_counts_each_storage_while_it_lives():
    known = torch.zeros(100)
    with LiveMemory([known]) as live:
        x = torch.zeros(1000)
        views = [x.view(10, 100), x[3:], x.detach()]
        assert live.now == live.peak == 4000
        y = known.view(10, 10)  # of known storage
        assert live.now == 4000
        z = x + 1
        assert (live.now, live.peak) == (8000, 8000)
        del x, views
        assert (live.now, live.peak) == (4000, 8000)
        live.restart_peak()
        z.add_(1)
        assert (live.now, live.peak) == (4000, 4000)
        del y, z
    assert live.now == 0


def test_live_memory_sees_what_is_kept_for_the_backward_pass():
    layer = nn.Linear(8, 8)
    with LiveMemory(layer.parameters()) as live:
        x = torch.ones(64, 8)
        y = layer(x).tanh().sum()
        kept = live.now
        assert kept == 2 * 64 * 8 * 4 + 4  # the input, which the matrix's gradient needs, tanh's output, and the sum
        y.backward()
        assert live.peak > kept


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("optvq-imagenet-h4", {}),
        ("optvq-imagenet-h4", {"checkpoint_activations": True, "channels_last": True}),
        ("var-vqvae", {}),
        ("ibq", {"precision": "bfloat16"}),
        ("vit-vqgan", {}),
        ("movq", {}),
    ],
)
def test_a_step_without_numbers_takes_what_a_real_one_takes(name, changes):
    config = dataclasses.replace(shrunken(PRESETS[name]()), **changes)
    dry = build_step(config)
    with dry_run(dry):
        expected, tokens = measure_step(dry, 4)
    step = real_step(config)
    step.state.step = config.steps
    measured, real_tokens = measure_step(step, 4)
    # Without numbers, what these two do takes a few small tensors more or less.
    tolerance = 0.01 if name in ("var-vqvae", "ibq") else 0.0
    assert measured == pytest.approx(expected, rel=tolerance, abs=0)
    assert tokens == real_tokens


# plans ---------------------------------------------------------------------------------------------------------------


@functools.cache
def plan(**changes: object) -> Plan:
    return make_plan(dataclasses.replace(shrunken(PRESETS["optvq-imagenet-h4"]()), **changes))  # type: ignore[arg-type]


def test_parts_of_a_plan():
    config = shrunken(PRESETS["optvq-imagenet-h4"]())
    planned, step = plan(), real_step(config)
    weights = sum(p.numel() for p in step.tokenizer.parameters())
    assert step.adversary is not None
    judge = sum(p.numel() for p in step.adversary.discriminator.parameters())
    buffers = sum(buffer.nbytes for buffer in step.tokenizer.buffers())
    assert planned.memory["weights"] == planned.memory["average"] == 4 * weights + buffers
    assert planned.memory["optimizer"] == 8 * weights
    assert planned.parameters["discriminator"] == judge
    assert planned.memory["discriminator"] >= 12 * judge
    assert (planned.tokens_per_image, planned.bits_per_image) == (4 * 4 * 4, 4 * 4 * 4 * 5)
    assert planned.total(3) - planned.total(2) == max(planned.step_memory_per_image.values())


def test_the_largest_batch_fits_and_one_more_does_not():
    planned = plan()
    memory = 10 * planned.total(20)
    most = planned.largest_batch(memory)
    assert planned.total(most) <= 0.9 * memory < planned.total(most + 1)
    assert planned.largest_batch(1) == 0
    assert largest_batch(shrunken(PRESETS["optvq-imagenet-h4"]()), memory) == most


def test_what_saves_memory_is_seen():
    each = {name: max(planned.step_memory_per_image.values()) for name, planned in {
        "plain": plan(),
        "checkpointed": plan(checkpoint_activations=True),
        "bfloat16": plan(precision="bfloat16"),
    }.items()}  # fmt: skip
    assert each["checkpointed"] < 0.8 * each["plain"]
    assert each["bfloat16"] < 0.8 * each["plain"]


# the command ---------------------------------------------------------------------------------------------------------


def test_a_256_pixel_preset_is_planned_without_its_files(tmp_path, monkeypatch):
    """DINO and LPIPS are among its parts, and their files are not there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    options = ["--preset", "optvq-imagenet-h4", "--set", "discriminator.network=dino", "--memory", "80", "--json"]
    result = CliRunner().invoke(main, ["plan", *options])
    assert result.exit_code == 0, result.output
    planned = json.loads(result.output)
    assert sum(planned["parameters"][part] for part in ("encoder", "quantizer", "decoder")) == 72_932_291
    assert (planned["tokens_per_image"], planned["bits_per_image"]) == (1024, 14336)
    assert planned["parameters"]["perceptual"] == 14_716_160
    assert planned["parameters"]["discriminator"] > 21_000_000
    assert 0 < planned["largest_batch"] < 100


def test_the_command_takes_a_config_and_settings(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"model": {"base_channels": 8}, "batch_size": 4}))
    options = [
        "plan",
        "--preset",
        "demo",
        "--config",
        str(tmp_path / "run.json"),
        "--set",
        "quantizer.codebook_size=64",
    ]
    shown = CliRunner().invoke(main, [*options, "--batch-size", "6", "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    assert "130 tokens of 64 codes, 780 bits" in shown.output
    assert "6 images at once" in shown.output
    assert "largest batch" in shown.output
    scarce = CliRunner().invoke(main, [*options, "--memory", "0.001"])
    assert "not one image fits, in 90% of 1.0 MiB (--memory)" in scarce.output


def test_mistakes():
    for options, message in (
        (["plan"], "expected --preset NAME or --config FILE.json, got neither"),
        (["plan", "--preset", "dmo"], "got dmo; did you mean demo?"),
        (["plan", "--preset", "demo", "--set", "model.dept=3"], "unknown key model.dept"),
        (["plan", "--preset", "demo", "--memory", "0"], "0.0 is not in the range x>0"),
    ):
        result = CliRunner().invoke(main, options)
        assert result.exit_code != 0
        assert message in result.output
