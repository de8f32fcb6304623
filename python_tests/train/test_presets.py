"""Every preset: that it can be built, planned, and trained for two steps at a narrow width; facts of published runs."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from shrunken import shrunken
from vqdm_train.distributed import World
from vqdm_train.model import build_tokenizer
from vqdm_train.plan import make_plan
from vqdm_train.presets import PRESETS
from vqdm_train.settings import apply_json, to_dict
from vqdm_train.state import TrainingState
from vqdm_train.step import TrainingStep

CPU = World(rank=0, size=1, device=torch.device("cpu"))

# Tokens of an image, bits, and millions of parameters of encoder, quantizer and decoder where their sources state them.
FACTS = {
    "vqdm-256": (680, 680 * 12, None),
    "wasserstein-imagenet-256": (680, 9520, None),
    "wasserstein-imagenet-256-50000": (680, 680 * 16, None),
    "wasserstein-imagenet-256-100000": (680, 680 * 17, None),
    "wasserstein-ffhq-256": (680, 9520, None),
    "wasserstein-var-2026": (680, 8160, 109),
    "var-vqvae": (680, 8160, 109),
    "optvq-imagenet-h4": (1024, 14336, None),
    "optvq-imagenet-h8": (2048, 28672, None),
    "vqgan-imagenet-f16": (256, 3584, None),
    "vqgan-ema": (256, 3584, None),
    "vqgan-fc": (256, 3584, None),
    "vqgan-lc": (256, 256 * 17, None),
    "vit-vqgan": (1024, 1024 * 13, None),
    "llamagen": (256, 3584, 72),
    "simvq": (256, 4096, None),
    "ibq": (256, 3584, None),
    "rqvae": (256, 3584, None),
    "movq": (1024, 14336, 68),
}


# These have the parts of another preset, in other sizes.
LIKE_OTHERS = {
    *("demo-vanilla", "vq-digits", "optvq-cifar10", "optvq-imagenet-h8", "wasserstein-imagenet-256-50000"),
    *("wasserstein-imagenet-256-100000", "wasserstein-ffhq-256", "wasserstein-var-2026", "vqgan-fc", "simvq"),
}


@pytest.mark.parametrize("name", FACTS)
def test_published_sizes(name: str) -> None:
    num_tokens, bits, millions = FACTS[name]
    config = PRESETS[name]()
    with torch.device("meta"):
        tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels)
    side = config.data.image_size // config.model.downsampling
    per_position = config.quantizer.num_heads * config.quantizer.residual_depth
    scales = config.quantizer.scales or (side,)
    assert sum(scale**2 for scale in scales) * per_position == num_tokens
    assert num_tokens * (config.quantizer.codebook_size - 1).bit_length() == bits
    if millions is not None:
        assert round(sum(parameter.numel() for parameter in tokenizer.parameters()) / 1e6) == millions


@pytest.mark.parametrize("name", PRESETS)
def test_two_steps_with_every_part_on(name: str) -> None:
    config = shrunken(PRESETS[name]())
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels)
    state = TrainingState(tokenizer, config, CPU)
    step = TrainingStep(state, config, CPU)
    size = (config.batch_size, config.data.in_channels, config.data.image_size, config.data.image_size)
    before = {name: value.clone() for name, value in tokenizer.named_parameters()}
    judge = [] if state.adversary is None else list(state.adversary.discriminator.parameters())
    judge_before = [parameter.detach().clone() for parameter in judge]
    for _ in range(2):
        outcome = step.run([torch.rand(size) * 2 - 1])
        assert outcome.updated
        assert all(value.isfinite() for value in outcome.terms.values())
        state.step += 1
    assert ("adversarial" in outcome.terms) == (PRESETS[name]().adversarial.weight > 0)

    def moved(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
        return sum(not torch.equal(a, b) for a, b in pairs) / max(1, len(pairs))

    trained = [(value, before[name]) for name, value in tokenizer.named_parameters() if value.requires_grad]
    assert moved(trained) > 0.9
    # The bias of the logits stands still while no hinge is shut: it moves both sides alike.
    assert not judge or moved(list(zip(judge, judge_before, strict=True))) > 0.8


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in LIKE_OTHERS])
def test_a_plan_of_a_narrow_preset(name: str) -> None:
    config = shrunken(PRESETS[name]())
    plan = make_plan(config)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels)
    networks = ("encoder", "quantizer", "decoder")
    assert sum(plan.parameters[part] for part in networks) == sum(p.numel() for p in tokenizer.parameters())
    adversarial = config.adversarial.weight > 0
    assert ("discriminator" in plan.parameters) == ("discriminator" in plan.step_memory_per_image) == adversarial
    assert min(plan.step_memory_per_image.values()) > 0
    assert plan.tokens_per_image > 0


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_all_of_itself_in_plain_data(name: str) -> None:
    config = PRESETS[name]()
    assert apply_json(PRESETS["demo"](), to_dict(config)) == config
    assert PRESETS[name].__doc__
