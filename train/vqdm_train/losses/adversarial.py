"""The adversarial game: what each network makes small, and how much the tokenizer hears of it at each step.

D(x) are the logits of images, D(y) those of reconstructions; means are over all logits of a batch.

                     discriminator                                              generator
    hinge            1/2 (mean relu(1 - D(x)) + mean relu(1 + D(y)))            -mean D(y)
    non_saturating   1/2 (mean softplus(-D(x)) + mean softplus(D(y)))           mean softplus(-D(y))

The half is VQGAN's. Where it is absent, half of the published LeCam and consistency weights do the same here.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_train.losses.precision import widen

__all__ = [
    "AdversarialConfig",
    "LeCam",
    "adaptive_weight",
    "adversarial_weight",
    "consistency_loss",
    "discriminator_loss",
    "generator_loss",
]

Form = Literal["hinge", "non_saturating"]


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The discriminator's part in training. A weight of 0 trains without one, whatever else stands here.

    The discriminator trains from `start_step` on; its gradient reaches the tokenizer `warmup_steps` later, with a
    weight that rises linearly to the whole over `ramp_steps`. A tokenizer that meets an untrained or a sudden
    discriminator loses at once what it had learned.
    """

    weight: float = 0.0
    form: Form = "hinge"
    start_step: int = 0
    warmup_steps: int = 0
    ramp_steps: int = 0
    adaptive: bool = True  # weight times |gradient of the reconstruction| / |gradient of the game|, at the last layer
    adaptive_eps: float = 1e-4
    adaptive_min: float = 0.0
    adaptive_max: float = 1e4
    lecam: float = 0.0  # weight of the LeCam penalty
    lecam_decay: float = 0.99
    augment: bool = False  # the discriminator sees augmented images (DiffAug)
    consistency: float = 0.0  # weight of balanced consistency between logits of images and of augmented images

    def __post_init__(self) -> None:
        for name in ("weight", "start_step", "warmup_steps", "ramp_steps", "lecam", "consistency", "adaptive_min"):
            if getattr(self, name) < 0:
                raise ValueError(f"adversarial: expected {name} >= 0, got {getattr(self, name)}")
        if self.adaptive_eps <= 0:
            raise ValueError(f"adversarial: expected adaptive_eps > 0, got {self.adaptive_eps}")
        if self.adaptive_max < self.adaptive_min:
            raise ValueError(
                "adversarial: expected adaptive_max to be at least adaptive_min, "
                f"got {self.adaptive_max} and {self.adaptive_min}"
            )
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"adversarial: expected lecam_decay in [0, 1), got {self.lecam_decay}")
        if not self.lecam and self.lecam_decay != type(self).lecam_decay:
            raise ValueError(
                f"adversarial: expected lecam_decay only with lecam > 0, got lecam_decay={self.lecam_decay}"
            )
        if self.consistency and not self.augment:
            raise ValueError(
                f"adversarial: expected consistency only with augment=true, got consistency={self.consistency}"
            )
        for name in ("adaptive_eps", "adaptive_min", "adaptive_max"):
            value = getattr(self, name)
            if not self.adaptive and value != getattr(type(self), name):
                raise ValueError(f"adversarial: expected {name} only with adaptive=true, got {name}={value}")


def generator_loss(
    fake_logits: Tensor,  # of reconstructions, any shape
    form: Form,
) -> Tensor:
    """What the tokenizer makes small so that its reconstructions pass for images; scalar."""
    logits = widen(fake_logits)
    return -logits.mean() if form == "hinge" else F.softplus(-logits).mean()


def discriminator_loss(
    real_logits: Tensor,  # of images, any shape
    fake_logits: Tensor,  # of reconstructions that carry no gradient to the tokenizer, any shape
    form: Form,
) -> Tensor:
    """What the discriminator makes small to tell images from reconstructions; scalar."""
    real, fake = widen(real_logits), widen(fake_logits)
    if form == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def consistency_loss(
    logits: Tensor,
    augmented_logits: Tensor,  # of the same images, augmented; same shape
) -> Tensor:
    """Balanced consistency (Zhao et al., Improved Consistency Regularization for GANs, 2021), of images or of
    reconstructions: their sum is the penalty; scalar."""
    return F.mse_loss(widen(augmented_logits), widen(logits))


def adversarial_weight(
    step: int,  # counted from 0
    config: AdversarialConfig,
) -> float:
    """Weight of the game in the tokenizer's loss: 0, then a ramp from weight / ramp_steps to the whole weight."""
    since = step - config.start_step - config.warmup_steps
    if since < 0:
        return 0.0
    return config.weight * min(1.0, (since + 1) / max(1, config.ramp_steps))


def adaptive_weight(
    reconstruction_gradient: Tensor,  # of the loss without the game, at the decoder's last layer, mean over ranks
    adversarial_gradient: Tensor,  # of generator_loss, there, mean over ranks
    config: AdversarialConfig,
) -> Tensor:
    """|reconstruction gradient| / (|adversarial gradient| + eps), clamped (VQGAN, Esser et al. 2021); scalar.

    0 where a gradient is not finite, as in OptVQ: the logged weight stays a number, and the loss or its gradient,
    which is not finite either, is what stops the step.
    """
    reconstruction = widen(reconstruction_gradient.detach()).norm()
    adversarial = widen(adversarial_gradient.detach()).norm()
    ratio = reconstruction / (adversarial + config.adaptive_eps)
    clamped = ratio.clamp(config.adaptive_min, config.adaptive_max)
    return torch.where(reconstruction.isfinite() & adversarial.isfinite(), clamped, torch.zeros_like(clamped))


class LeCam(nn.Module):
    """LeCam regularisation (Tseng et al., Regularizing GANs under Limited Data, 2021), in the form of its code:

        penalty = mean relu(D(x) - m_fake)^2  +  mean relu(m_real - D(y))^2

    m_real and m_fake are running means of the logits, in buffers; they start at 0.
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def penalty(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Against the running means as they are, without the batch; scalar. Call it before `update`."""
        # Copies: `update` writes into the buffers, which the graph of the penalty still needs.
        above = F.relu(widen(real_logits) - self.fake_mean.clone())
        below = F.relu(self.real_mean.clone() - widen(fake_logits))
        return above.square().mean() + below.square().mean()

    @torch.no_grad()
    def update(
        self,
        real_mean: Tensor,  # scalar: mean logit of images, over all ranks
        fake_mean: Tensor,  # scalar: that of reconstructions
    ) -> None:
        """Moves the running means towards those of a batch."""
        self.real_mean.lerp_(real_mean.detach().to(self.real_mean.dtype), 1 - self.decay)
        self.fake_mean.lerp_(fake_mean.detach().to(self.fake_mean.dtype), 1 - self.decay)
