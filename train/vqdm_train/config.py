"""What a run is: frozen dataclasses, checked when built, that are written to and read from JSON.

A run is changed in four ways, each over the one before: preset < --config FILE.json < --set a.b=c < flags; the changes
are merged first and checked together (settings.py).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from vqdm_train.checkpoint import CheckpointConfig
from vqdm_train.data import DataConfig
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import SMALLEST_IMAGE, AdversarialConfig, LossConfig
from vqdm_train.model import ModelConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.quantizer import QuantizerConfig, build_quantizer
from vqdm_train.schedule import BETA1_RANGE
from vqdm_train.settings import flatten
from vqdm_train.trackers import TrackingConfig

__all__ = ["Config", "differences"]


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


def differences(saved: Config, asked: Config) -> list[str]:
    """`key (saved -> asked)` for each key that differs and that a resumed run may not change."""
    old, new = flatten(saved), flatten(asked)
    return [f"{key} ({old[key]} -> {new[key]})" for key in old if old[key] != new[key] and key not in RESUMABLE]
