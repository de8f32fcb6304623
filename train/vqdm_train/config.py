"""What a run is: frozen dataclasses, checked when built, that are written to and read from JSON.

A run is changed in four ways, each over the one before: preset < --config FILE.json < --set a.b=c < flags; the changes
are merged first and checked together. Keys are the dotted names of the fields; values are plain data that must fit the
field's type, and can name no Python object.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from vqdm_train.checkpoint import CheckpointConfig
from vqdm_train.data import DataConfig, open_eval, open_train
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import SMALLEST_IMAGE, AdversarialConfig, LossConfig
from vqdm_train.model import ModelConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.quantizer import QuantizerConfig, build_quantizer
from vqdm_train.schedule import BETA1_RANGE
from vqdm_train.trackers import TrackingConfig

__all__ = [
    "Config",
    "DataConfig",
    "apply_json",
    "differences",
    "flatten",
    "merge",
    "open_eval",
    "open_train",
    "parse_settings",
    "to_dict",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run, complete: `config.json` in the run directory holds it and starts it again."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # An adversarial.weight of 0 trains without a discriminator, whatever the settings of these three.
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    discriminator_optimizer: DiscriminatorOptimizerConfig = field(default_factory=DiscriminatorOptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    steps: int = 10_000
    batch_size: int = 16  # images per step, of all processes and micro-batches together
    accumulate: int = 1  # micro-batches of a step, one after the other: less memory, the same step
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16 is autocast; weights stay float32
    channels_last: bool = False  # memory layout of images and convolutions: another speed, and other rounding
    compile: tuple[Literal["encoder", "decoder", "discriminator", "perceptual"], ...] = ()  # by torch.compile
    checkpoint_activations: bool = False  # computes blocks again in the backward pass: less memory, a third more time
    ema_decay: float = 0.999
    max_skipped_steps: int = 10  # a run stops after this many steps in a row with a non-finite loss or gradient
    log_every: int = 10
    sample_every: int = 100
    num_samples: int = 8  # images in a sample grid
    eval_every: int = 0  # steps between measurements on the held-out images; 0: only at the end
    timeout: float = 60.0  # seconds that a process waits for another before the run ends

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "max_skipped_steps",
            "log_every",
            "sample_every",
            "num_samples",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"config: expected {name} >= 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"config: expected accumulate to divide batch_size {self.batch_size}, got {self.accumulate}"
            )
        if self.eval_every < 0 or self.timeout <= 0:
            raise ValueError(
                f"config: expected eval_every >= 0 and timeout > 0, got {self.eval_every} and {self.timeout}"
            )
        beta1 = self.discriminator_optimizer.betas[0]
        if self.adversarial.weight > 0 and self.optimizer.schedule == "one_cycle" and beta1 + BETA1_RANGE >= 1:
            raise ValueError(
                f"discriminator_optimizer: expected the first of betas below {1 - BETA1_RANGE} with "
                f"optimizer.schedule=one_cycle, which adds up to {BETA1_RANGE}, got {beta1}"
            )
        self._check_image_size()
        self._check_compile()
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"config: expected seed in [0, 2^31), got {self.seed}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"config: expected ema_decay in [0, 1), got {self.ema_decay}")
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (":" in self.device and (kind != "cuda" or not index.isdigit())):
            raise ValueError(f"config: expected device to be auto, cpu, cuda or cuda:N, got {self.device}")
        factor = self.model.downsampling
        if self.data.image_size % factor:
            raise ValueError(
                f"config: expected data.image_size to be a multiple of the downsampling factor {factor}, "
                f"got {self.data.image_size}"
            )
        latent = self.data.image_size // factor
        if self.quantizer.scales and self.quantizer.scales[-1] != latent:
            raise ValueError(
                f"config: expected the last of quantizer.scales to be the latent size {latent} "
                f"(data.image_size {self.data.image_size} / {factor}), got {list(self.quantizer.scales)}"
            )
        with torch.device("meta"):  # to hear at once what the quantizer would refuse
            build_quantizer(self.quantizer, self.model.latent_channels)

    def _check_image_size(self) -> None:
        """The networks that judge a picture would refuse it too, but perhaps days later."""
        size, discriminator, network = self.data.image_size, self.discriminator, self.losses.perceptual_network
        if self.adversarial.weight > 0 and size < discriminator.smallest_image:
            raise ValueError(
                f"config: expected data.image_size >= {discriminator.smallest_image} with discriminator.num_layers="
                f"{discriminator.num_layers}, got {size}"
            )
        if self.losses.perceptual > 0 and size < SMALLEST_IMAGE[network]:
            raise ValueError(
                f"config: expected data.image_size >= {SMALLEST_IMAGE[network]} with losses.perceptual_network="
                f"{network}, got {size}; --set losses.perceptual=0 does without it"
            )

    def _check_compile(self) -> None:
        if len(set(self.compile)) < len(self.compile):
            raise ValueError(f"config: expected each part once in compile, got {list(self.compile)}")
        absent = {"discriminator": self.adversarial.weight == 0, "perceptual": self.losses.perceptual == 0}
        for part in self.compile:
            if absent.get(part):
                raise ValueError(f"config: expected parts of the run in compile, got {part}, whose weight is 0")


# What a resumed run may change: the rest would make another run of it.
RESUMABLE = frozenset({"steps", "device"})


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain data, ready for json.dumps."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted name -> plain value, for every field."""

    def walk(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        return {key: leaf for inner, v in value.items() for key, leaf in walk(v, f"{name}.{inner}").items()}

    return {key: leaf for name, value in to_dict(config).items() for key, leaf in walk(value, name).items()}


def differences(saved: Config, asked: Config) -> list[str]:
    """`key (saved -> asked)` for each key that differs and that a resumed run may not change."""
    old, new = flatten(saved), flatten(asked)
    return [f"{key} ({old[key]} -> {new[key]})" for key in old if old[key] != new[key] and key not in RESUMABLE]


def apply_json(config: T, data: object, prefix: str = "") -> T:
    """The config with the values of a (partial) JSON object in place of its own.

    Raises ValueError for an unknown key, naming the nearest one, and for a value that does not fit its field.
    """
    if not isinstance(data, dict):
        raise ValueError(f"config: expected an object for {prefix or 'the file'}, got {json.dumps(data)}")
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key not in hints:
            known = [f"{prefix}.{hint}" if prefix else hint for hint in hints]
            raise ValueError(f"config: unknown key {name}{_did_you_mean(name, known)}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            changes[key] = apply_json(current, value, name)
        else:
            changes[key] = _convert(hints[key], value, name)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def parse_settings(config: Config, settings: typing.Sequence[str]) -> dict[str, Any]:
    """Each `a.b=c` of --set as one JSON object for `apply_json`; ValueError for an unknown key, with the nearest."""
    changes: dict[str, Any] = {}
    known = flatten(config)
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"--set: expected KEY=VALUE, got {setting}")
        if name not in known:
            raise ValueError(f"--set: unknown key {name}{_did_you_mean(name, known)}")
        *parents, last = name.split(".")
        inner = changes
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = _parse(text, known[name])
    return changes


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two JSON objects as one; where both state a value, the one above counts."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse(text: str, current: object) -> object:
    """The plain value that the text of a --set states: JSON, a bare word, or 1,2,3 for a list."""
    if isinstance(current, list) and not text.startswith("[") and text not in ("null", "none", "None"):
        return [_parse(part.strip(), None) for part in text.split(",")] if text else []
    if isinstance(current, str):
        return text
    words = {"none": None, "None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(hint: Any, value: object, name: str) -> Any:
    """The plain value as the field's type, or ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and value in (None, "null", "none", "None"):  # as --set leaves a word for a word
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, name)
    if origin is Literal:
        if value in arguments:
            return value
        choices = ", ".join(str(argument) for argument in arguments)
        raise ValueError(f"config: expected {name} to be one of {choices}, got {json.dumps(value)}")
    if origin is tuple:
        if isinstance(value, list) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            return tuple(_convert(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
        size = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        raise ValueError(
            f"config: expected {name} to be a list of {size}{arguments[0].__name__}, got {json.dumps(value)}"
        )
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is float and number:
        return float(value)  # type: ignore[arg-type]
    if hint is int and number and float(value).is_integer():  # type: ignore[arg-type]
        return int(value)  # type: ignore[call-overload]
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ValueError(f"config: expected {name} to be {_kind(hint)}, got {json.dumps(value)}")


def _kind(hint: type) -> str:
    return {float: "a finite number", int: "a whole number", bool: "true or false", str: "a string"}[hint]


def _did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """The known key that looks most like the name, as a whole or in its last part."""

    def likeness(key: str) -> float:
        whole = difflib.SequenceMatcher(None, name, key).ratio()
        return max(whole, difflib.SequenceMatcher(None, name.split(".")[-1], key.split(".")[-1]).ratio())

    return f"; did you mean {max(known, key=likeness)}?"
