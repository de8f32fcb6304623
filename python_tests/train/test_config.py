"""Config: what is refused and how it is said, precedence, presets, and that plain data says everything."""

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqdm_cuda import SinkhornQuantizer, SmallEncoder, VectorQuantizer
from vqdm_train.config import Config, differences
from vqdm_train.model import build_tokenizer
from vqdm_train.presets import PRESETS, demo, demo_vanilla, optvq_digits, vq_digits
from vqdm_train.quantizer import QuantizerConfig, build_quantizer
from vqdm_train.settings import apply_json, flatten, merge, parse_settings, to_dict


def change(config: Config, *settings: str) -> Config:
    return apply_json(config, parse_settings(config, settings))


# values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_json_says_everything(name: str) -> None:
    config = PRESETS[name]()
    text = json.dumps(to_dict(config))
    assert apply_json(Config(), json.loads(text)) == config


def test_demos_differ_in_the_matching_weight_alone() -> None:
    with_matching, without = flatten(demo()), flatten(demo_vanilla())
    different = {key for key in with_matching if with_matching[key] != without[key]}
    assert different == {"quantizer.wasserstein_weight"}
    assert without["quantizer.wasserstein_weight"] == 0
    assert with_matching["quantizer.codebook_size"] == 1024
    assert with_matching["quantizer.scales"] == [1, 2, 3, 4, 6, 8]
    assert with_matching["data.image_size"] == 64
    assert demo().model.downsampling == 8


def test_digits_differ_in_the_assignment_alone() -> None:
    transport, nearest = flatten(optvq_digits()), flatten(vq_digits())
    assert {key for key in transport if transport[key] != nearest[key]} == {"quantizer.kind"}
    quantizers = [build_quantizer(config().quantizer, 32) for config in (optvq_digits, vq_digits)]
    assert [type(q) for q in quantizers] == [SinkhornQuantizer, VectorQuantizer]
    held = [{key: value for key, value in q.config.items() if key != "kind"} for q in quantizers]
    assert {key: held[0][key] for key in held[1].keys() & held[0].keys()}.items() <= held[1].items()
    states = []
    for config in (optvq_digits(), vq_digits()):
        torch.manual_seed(0)
        states.append(build_tokenizer(config.model, config.quantizer, 1).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())  # the same start


@pytest.mark.parametrize(("name", "heads"), [("optvq-imagenet-h4", 4), ("optvq-imagenet-h8", 8)])
def test_published_imagenet_models(name: str, heads: int) -> None:
    config = PRESETS[name]()
    with torch.device("meta"):
        tokenizer = build_tokenizer(config.model, config.quantizer, 3)
    assert tokenizer.quantizer.codebook_parameters()[0].shape == (16384, 256 // heads)
    assert len(tokenizer.quantizer.codebook_parameters()) == 3  # codes, and the linear map's weight and bias
    assert (config.data.image_size // tokenizer.factor) ** 2 * heads == 256 * heads
    assert {(m.in_channels, m.kernel_size) for n, m in tokenizer.named_modules() if n.endswith("quant_conv")} == {
        (256, (1, 1))
    }
    assert config.steps == 1_000_912
    assert config.optimizer.lr == pytest.approx(1.28e-4)


@pytest.mark.parametrize(("name", "channels", "steps"), [("optvq-mnist", 1, 5860), ("optvq-cifar10", 3, 4883)])
def test_published_small_models(name: str, channels: int, steps: int) -> None:
    config = PRESETS[name]()
    tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels)
    assert tokenizer.in_channels == channels
    assert isinstance(tokenizer.encoder, SmallEncoder)
    assert tokenizer.encode(torch.zeros(1, channels, 32, 32)).shape == (1, 8, 8, 4)
    assert tokenizer.quantizer.codebook.shape == (1024, 2)
    assert (config.steps, config.batch_size, config.data.mirror) == (steps, 1024, False)


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("quantizer.sinkhorn.normalize=null", "quantizer.sinkhorn.normalize", None),
        ("quantizer.sinkhorn.loss_form=ce", "quantizer.sinkhorn.loss_form", "ce"),
        ("quantizer.sinkhorn.start_step=5", "quantizer.sinkhorn.start_step", 5),
        ("quantizer.num_heads=4", "quantizer.num_heads", 4),
    ],
)
def test_setting_of_optvq(setting: str, key: str, value: object) -> None:
    config = change(optvq_digits(), setting)
    assert flatten(config)[key] == value
    held = build_quantizer(config.quantizer, 8).config
    assert held.get(key.rsplit(".", 1)[1]) == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "quantizer.sinkhorn.eps=0",
            "quantizer: SinkhornQuantizer: expected eps > 0 and floor >= 0, both finite, got 0.0",
        ),
        ("quantizer.sinkhorn.num_iters=-1", "quantizer: SinkhornQuantizer: expected num_iters from 0 to 2^31, got -1"),
        ("quantizer.sinkhorn.cost=cosine", "config: expected quantizer.sinkhorn.cost to be one of euclidean, sqeucl"),
        (
            "quantizer.sinkhorn.epsilon=1",
            "--set: unknown key quantizer.sinkhorn.epsilon; did you mean quantizer.sinkho",
        ),
        ("quantizer.num_heads=0", "quantizer: expected num_heads >= 1, and 1 with scales, got 0"),
        ("quantizer.num_heads=3", "quantizer: expected num_heads to divide the 32 latent channels, got 3"),
        ("quantizer.freeze_codebook=true", "quantizer: expected freeze_codebook only with kind=vector or wasserstein"),
        ("quantizer.wasserstein_weight=1", "quantizer: expected wasserstein_weight only with kind=wasserstein"),
        ("model.base_channels=64", "model: expected base_channels only in a vqgan network, got base_channels=64"),
        ("model.attention=false", "model: expected attention only in a vqgan network, got attention=False"),
        (
            "data.image_size=18",
            "config: expected data.image_size to be a multiple of the downsampling factor 4, got 18",
        ),
    ],
)
def test_bad_setting_of_optvq(setting: str, message: str) -> None:
    assert outcome(lambda: change(optvq_digits(), setting)).startswith(message)


@pytest.mark.parametrize(
    ("start", "settings", "message"),
    [
        (demo, ["quantizer.sinkhorn.eps=1"], "quantizer: expected sinkhorn.eps only with kind=sinkhorn, got"),
        (demo, ["quantizer.num_heads=2"], "quantizer: expected num_heads >= 1, and 1 with scales, got 2"),
        (
            optvq_digits,
            ["quantizer.codebook_weight=0", "quantizer.freeze_codebook=true"],
            "quantizer: expected freeze_codebook only with kind=vector or wasserstein, got",
        ),
        (
            optvq_digits,
            ["quantizer.scales=1,4", "quantizer.sinkhorn.loss_form=ce"],
            "quantizer: MultiScaleQuantizer: expected inner loss_form 'l2' or 'l1'",
        ),
        (
            lambda: PRESETS["optvq-imagenet-h4"](),
            ["discriminator_optimizer.betas=0.95,0.999"],
            "discriminator_optimizer: expected the first of betas below 0.9 with optimizer.schedule=one_cycle",
        ),
        (
            optvq_digits,
            ["adversarial.weight=0.1"],
            "config: expected data.image_size >= 24 with discriminator.num_layers=3, got 16",
        ),
        (
            optvq_digits,
            ["losses.perceptual=1", "losses.perceptual_network=alex"],
            "config: expected data.image_size >= 31 with losses.perceptual_network=alex, got 16",
        ),
        (
            lambda: PRESETS["optvq-mnist"](),
            ["optimizer.warmup_steps=3"],
            "optimizer: expected warmup_steps only with schedule=cosine or constant or step, got warmup_steps=3",
        ),
        (
            lambda: PRESETS["optvq-mnist"](),
            ["optimizer.betas=0.9,0.999"],
            "optimizer: expected the first of betas below 0.9 with schedule=one_cycle",
        ),
    ],
)
def test_settings_that_do_not_go_together(start: Callable[[], Config], settings: list[str], message: str) -> None:
    assert outcome(lambda: change(start(), *settings)).startswith(message)


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("steps=7", "steps", 7),
        ("steps=1e3", "steps", 1000),
        ("optimizer.lr=1e-5", "optimizer.lr", 1e-5),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("optimizer.betas=0.5,0.9", "optimizer.betas", [0.5, 0.9]),
        ("optimizer.betas=[0.5, 0.9]", "optimizer.betas", [0.5, 0.9]),
        ("compile=encoder", "compile", ["encoder"]),
        ("compile=encoder, decoder", "compile", ["encoder", "decoder"]),
        ("compile=", "compile", []),
        ("quantizer.normalize=features", "quantizer.normalize", "features"),
        ("quantizer.normalize=none", "quantizer.normalize", None),
        ("quantizer.init_std=null", "quantizer.init_std", None),
        ("quantizer.squared=true", "quantizer.squared", True),
        ("data.path=12", "data.path", "12"),
        ("data.path= a=b ", "data.path", "a=b"),
    ],
)
def test_setting(setting: str, key: str, value: object) -> None:
    assert flatten(change(demo(), setting))[key] == value


NUMBERS = {key: "2" if isinstance(v, int) else "0.25" for key, v in flatten(demo()).items() if type(v) in (int, float)}
FIXED_BY_OTHERS = {
    *("data.image_size", "data.in_channels", "quantizer.num_heads"),
    *("quantizer.phi_kernel_size", "quantizer.residual_depth"),
    *("adversarial.consistency", "adversarial.lecam_decay", "optimizer.decay_factor"),
    *(key for key in NUMBERS if key.startswith("quantizer.") and key.count(".") == 2),  # of other kinds
    *(key for key in NUMBERS if key.startswith("model.vit.")),  # of another network
    *("model.base_channels", "model.latent_kernel_size", "model.patch_size", "model.latent_patch_size"),
}


@pytest.mark.parametrize("key", sorted(NUMBERS.keys() - FIXED_BY_OTHERS))
def test_setting_a_number_changes_that_key_alone(key: str) -> None:
    before, after = flatten(demo()), flatten(change(demo(), f"{key}={NUMBERS[key]}"))
    assert after[key] == float(NUMBERS[key])
    assert {name for name in before if before[name] != after[name]} <= {key}


def test_changes_are_checked_together() -> None:
    """48 pixels need other scales: neither of the two changes would pass alone."""
    changed = change(demo(), "data.image_size=48", "quantizer.scales=1,2,3,6")
    assert changed.quantizer.scales == (1, 2, 3, 6)


def test_merge_upper_wins() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "e": 5}) == {"a": {"b": 4, "c": 2}, "d": 3, "e": 5}


def test_differences_leave_out_steps_and_device() -> None:
    config = demo()
    assert differences(config, dataclasses.replace(config, steps=1, device="cpu")) == []
    assert differences(config, change(config, "optimizer.lr=1", "seed=3")) == [
        f"optimizer.lr ({config.optimizer.lr} -> 1.0)",
        "seed (0 -> 3)",
    ]


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        demo().steps = 1  # type: ignore[misc]


# bad ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "quantizer.codebok_size=3",
            "--set: unknown key quantizer.codebok_size; did you mean quantizer.codebook_size?",
        ),
        ("lr=3", "--set: unknown key lr; did you mean optimizer.lr?"),
        ("steps", "--set: expected KEY=VALUE, got steps"),
        ("quantizer=3", "--set: unknown key quantizer; did you mean quantizer."),
        ("steps=many", 'config: expected steps to be a whole number, got "many"'),
        ("steps=1.5", "config: expected steps to be a whole number, got 1.5"),
        ("steps=true", "config: expected steps to be a whole number, got true"),
        ("optimizer.lr=NaN", "config: expected optimizer.lr to be a finite number, got NaN"),
        ("optimizer.lr=1e999", "config: expected optimizer.lr to be a finite number, got Infinity"),
        ("quantizer.squared=1", "config: expected quantizer.squared to be true or false, got 1"),
        (
            "quantizer.kind=fancy",
            "config: expected quantizer.kind to be one of vector, ema, online, linear, normalized, wasserstein",
        ),
        ("optimizer.betas=0.5", "config: expected optimizer.betas to be a list of 2 float, got [0.5]"),
        ("optimizer.betas=null", "config: expected optimizer.betas to be a list of 2 float, got null"),
        ("steps=0", "config: expected steps >= 1, got 0"),
        ("seed=-1", "config: expected seed in [0, 2^31), got -1"),
        ("device=gpu", "config: expected device to be auto, cpu, cuda or cuda:N, got gpu"),
        ("device=cuda:x", "config: expected device to be auto, cpu, cuda or cuda:N, got cuda:x"),
        ("ema_decay=1", "config: expected ema_decay in [0, 1), got 1.0"),
        (
            "data.image_size=60",
            "config: expected data.image_size to be a multiple of the downsampling factor 8, got 60",
        ),
        ("data.image_size=128", "config: expected the last of quantizer.scales to be the latent size 16"),
        ("data.path=", "data: expected path"),
        ("data.in_channels=0", "data: expected in_channels >= 1, got 0"),
        ("data.workers=0", "data: expected workers >= 1, got 0"),
        ("data.eval_path=builtin:photos", "data: expected eval_path to be another data set or null, got"),
        ("data.min_scale=0", "data: expected min_scale in (0, 1] or null, got 0.0"),
        ("data.max_corrupt=2", "data: expected max_corrupt in [0, 1], got 2.0"),
        ("model.base_channels=9", "model: expected norm_groups to divide base_channels 9"),
        ("model.channel_multipliers=", "model: expected channel_multipliers >= 1, got []"),
        ("model.latent_kernel_size=2", "model: expected an odd latent_kernel_size, got 2"),
        ("model.dropout=1", "model: expected dropout in [0, 1), got 1.0"),
        ("model.init_gain=0", "model: expected init_gain > 0 and residual_gain >= 0, got 0.0 and "),
        ("model.num_res_blocks=0", "model: expected num_res_blocks >= 1, got 0"),
        ("quantizer.scales=1,3,2,8", "quantizer: expected scales that grow from 1 or more, got [1, 3, 2, 8]"),
        ("quantizer.codebook_size=0", "quantizer: WassersteinQuantizer: expected codebook_size of at least 1, got 0"),
        ("quantizer.init_std=-1", "quantizer: WassersteinQuantizer: expected init_std to be finite and positive, got"),
        ("quantizer.init_bound=-1", "quantizer: WassersteinQuantizer: expected init_bound to be finite and positive"),
        (
            "quantizer.init_bound=1",
            "quantizer: WassersteinQuantizer: expected init_std or init_bound, got both, 0.65 and",
        ),
        (
            "quantizer.freeze_codebook=true",
            "quantizer: WassersteinQuantizer: expected codebook_weight 0 with freeze_codebook",
        ),
        (
            "quantizer.target=gaussian",
            "quantizer: WassersteinQuantizer: expected target_std > 0 with target 'gaussian'",
        ),
        ("quantizer.target_std=1", "quantizer: WassersteinQuantizer: expected target_std only with target 'gaussian'"),
        (
            "quantizer.queue_size=1",
            "quantizer: WassersteinQuantizer: expected queue_size 0 (the batch alone) or at least",
        ),
        (
            "quantizer.queue_size=-2",
            "quantizer: WassersteinQuantizer: expected queue_size 0 (the batch alone) or at least",
        ),
        ("quantizer.tau=-1", "quantizer: WassersteinQuantizer: expected tau >= 0, got -1.0"),
        (
            "quantizer.scale_weights=1,2",
            "quantizer: MultiScaleQuantizer: expected scale_weights to be 6 finite numbers",
        ),
        ("quantizer.scale_weights=0,0,0,0,0,0", "quantizer: MultiScaleQuantizer: expected scale_weights to be 6"),
        (
            "quantizer.commitment_weight=-1",
            "quantizer: WassersteinQuantizer: expected commitment_weight to be finite and",
        ),
        ("losses.l1=-1", "losses: expected l1, l2 and perceptual >= 0 and not all 0"),
        ("optimizer.lr=0", "optimizer: expected lr and codebook_lr > 0"),
        ("optimizer.betas=0.9,1", "optimizer: expected betas in [0, 1), got [0.9, 1.0]"),
        ("optimizer.weight_decay=-1", "optimizer: expected weight_decay >= 0, got -1.0"),
        ("optimizer.warmup_steps=0", "optimizer: expected warmup_steps >= 1"),
        ("optimizer.final_lr_ratio=2", "optimizer: expected final_lr_ratio in [0, 1], got 2.0"),
        ("optimizer.grad_clip=0", "optimizer: expected grad_clip > 0 or null, got 0.0"),
        ("checkpoint.keep_last=0", "checkpoint: expected save_every and keep_last >= 1"),
    ],
)
def test_bad_setting(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"expected|unknown") as error:
        change(demo(), setting)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("off", "setting", "system"),
    [
        (["quantizer.kind=vector", "quantizer.wasserstein_weight=0"], "quantizer.squared=true", "kind=wasserstein"),
        (["quantizer.kind=vector"], "quantizer.wasserstein_weight=3", "kind=wasserstein"),
        (["quantizer.scales="], "quantizer.matching=per_scale", "scales"),
        (["quantizer.scales="], "quantizer.num_phi=1", "scales"),
        (["quantizer.scales="], "quantizer.scale_weights=1,2", "scales"),
        (["quantizer.kind=vector", "quantizer.wasserstein_weight=0"], "quantizer.queue_size=9", "kind=wasserstein"),
        (["quantizer.kind=vector", "quantizer.wasserstein_weight=0"], "quantizer.target_std=9", "kind=wasserstein"),
    ],
)
def test_options_that_would_do_nothing_are_refused(off: list[str], setting: str, system: str) -> None:
    start = dataclasses.replace(demo(), quantizer=QuantizerConfig(scales=(1, 8)))
    changed = change(start, *off)
    option = setting.split(".")[1].split("=")[0]
    with pytest.raises(ValueError, match=f"quantizer: expected {option} only with {system}, got {option}="):
        change(changed, setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["target=gaussian", "target_std=1"], "grad_to 'features' with target 'gaussian'.*, got 'codebook'"),
        (
            ["target=gaussian", "target_std=1", "grad_to=features", "normalize=features"],
            "normalize None with target 'gaussian'.*got 'features'",
        ),
        (
            ["target=features", "freeze_codebook=true", "codebook_weight=0"],
            "grad_to 'features' with freeze_codebook.*, got 'codebook'",
        ),
        (["queue_size=99", "matching=per_scale"], "matching 'pooled' .*, got 'per_scale'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^quantizer: \w+: expected {message}"):
        change(demo(), *(f"quantizer.{setting}" for setting in settings))


GOOD = [
    ["target=gaussian", "target_std=0.3", "grad_to=features", "freeze_codebook=true", "codebook_weight=0"],
    ["init_std=null", "init_bound=0.01", "queue_size=99", "target=features", "unbiased=true"],
    ["scale_weights=1,1,1,2,3,5", "matching=pooled_and_last", "tau=1e-8"],
]


@pytest.mark.parametrize("settings", [[], *GOOD], ids=str)
def test_what_the_config_takes_the_quantizer_takes_and_holds(settings: list[str]) -> None:
    config = change(demo(), *(f"quantizer.{setting}" for setting in settings)).quantizer
    quantizer = build_quantizer(config, 4)
    held = {key: value for part in (quantizer.config, quantizer.config["inner"]) for key, value in part.items()}
    for option in (setting.split("=")[0] for setting in settings):
        value = getattr(config, option)
        assert held[option] == (list(value) if isinstance(value, tuple) else value)
    assert held.keys() - {"inner", "code_dim"} <= vars(config).keys()  # every option of the library is a setting


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "config: expected an object for the file, got [1]"),
        ({"model": 3}, "config: expected an object for model, got 3"),
        ({"modle": {}}, "config: unknown key modle; did you mean model?"),
        ({"model": {"base_chanels": 3}}, "config: unknown key model.base_chanels; did you mean model.base_channels?"),
        ({"quantizer": {"scales": "1,8"}}, 'config: expected quantizer.scales to be a list of int, got "1,8"'),
        ({"data": {"path": {"__class__": "os.system"}}}, "config: expected data.path to be a string"),
    ],
)
def test_bad_json(data: object, message: str) -> None:
    with pytest.raises(ValueError, match="config: ") as error:
        apply_json(demo(), data)
    assert str(error.value).startswith(message)


SAYS = (
    "--set: ",
    "config: ",
    "data: ",
    "model: ",
    "quantizer: ",
    "loss: ",
    "optimizer: ",
    "checkpoint: ",
)


def outcome(build: Callable[[], Config]) -> str:
    """The sentence of a ValueError, or nothing for a config; any other exception goes on."""
    try:
        build()
    except ValueError as error:
        return str(error)
    return ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "steps", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(JSON)
def test_any_json_gives_a_config_or_a_sentence(data: object) -> None:
    said = outcome(lambda: apply_json(demo(), data))
    assert said == "" or said.startswith(SAYS)


@given(st.text(max_size=30))
def test_any_setting_gives_a_config_or_a_sentence(text: str) -> None:
    said = outcome(lambda: change(demo(), text))
    assert said == "" or said.startswith(SAYS)
