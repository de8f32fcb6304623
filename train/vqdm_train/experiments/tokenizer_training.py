"""How `quantizers` and `ablation` train: the demo's tokenizer by the demo's recipe, as `vqdm train` does.

Every training of an experiment starts from the same weights of encoder and decoder (but for the layers at the latents,
where these have another number of channels) and sees the same images. What is evaluated are the averaged weights.
"""

import copy
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from vqdm_cuda import ImageTokenizer, Quantizer
from vqdm_train.config import Config
from vqdm_train.data import TrainStream, open_eval, open_train
from vqdm_train.ema import EMA
from vqdm_train.evaluate import HeldOut, evaluate
from vqdm_train.experiments.optvq_training import EveryNth, picture
from vqdm_train.losses import reconstruction_loss
from vqdm_train.model import build_tokenizer
from vqdm_train.optimizer import build_optimizer, clip_gradients, schedule

__all__ = ["originals", "train_tokenizer"]

# Of a cell: the metrics of eval.json that it holds, to five digits.
_METRICS = {
    "psnr": "psnr_rgb",
    "ssim": "ssim_rgb",
    "error": "quantization_error",
    "used": "utilization",
    "perplexity": "perplexity",
}
_COUNTS = ("num_images", "num_tokens", "tokens_per_image", "bits_per_image", "codebook_size")
_TIMED_PASSES = 20


def train_tokenizer(
    config: Config,
    start: Config,  # the tokenizer whose weights, drawn from its seed, every training of the experiment starts from
    *,
    every: int,  # of the held-out images, every so many-th is evaluated
    shown: tuple[float, ...],  # held-out images in the picture, by their place among all, from 0 to 1
) -> dict[str, Any]:
    """Metrics on the held-out images, PSNR before the training too, CPU milliseconds of a step, and reconstructions.

    Leaves torch's generator as it was.
    """
    held_out = EveryNth(open_eval(config.data), every)
    stream = TrainStream(open_train(config.data), config.batch_size, config.seed)
    with torch.random.fork_rng(devices=[]):
        tokenizer = _from_the_same_weights(config, start)
        before = evaluate(tokenizer, held_out)[0]
        average, step_ms = _train(tokenizer, stream, config)
        quantizer_ms = _time_alone(tokenizer.quantizer, tokenizer.encoder(stream.batch(0)).detach())
    after = evaluate(average, held_out)[0]
    return {
        **{name: float(f"{after[key]:.5g}") for name, key in _METRICS.items()},
        "psnr_untrained": float(f"{before['psnr_rgb']:.5g}"),
        **{name: after[name] for name in _COUNTS},
        "step_ms": round(step_ms, 1),
        "quantizer_ms": round(quantizer_ms, 2),
        "reconstructions": picture(average.reconstruct(_shown(held_out, shown))),
    }


def originals(config: Config, *, every: int, shown: tuple[float, ...]) -> str:
    """The images that `train_tokenizer` reconstructs."""
    return picture(_shown(EveryNth(open_eval(config.data), every), shown))


def _shown(held_out: HeldOut, places: tuple[float, ...]) -> Tensor:  # [B, C, H, W]
    return torch.stack([held_out[round(place * (len(held_out) - 1))] for place in places])


@torch.no_grad()
def _from_the_same_weights(config: Config, start: Config) -> ImageTokenizer:
    tokenizer, common = _drawn(config), _drawn(start).state_dict()
    for name, value in tokenizer.state_dict().items():
        if not name.startswith("quantizer.") and value.shape == common[name].shape:
            value.copy_(common[name])
    return tokenizer


def _drawn(config: Config) -> ImageTokenizer:
    torch.manual_seed(config.seed)
    return build_tokenizer(config.model, config.quantizer, config.data.in_channels)


def _train(tokenizer: ImageTokenizer, stream: TrainStream, config: Config) -> tuple[ImageTokenizer, float]:
    """The tokenizer of averaged weights, and the median CPU milliseconds of a step, without those for its images."""
    tokenizer.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer, average = build_optimizer(tokenizer, config.optimizer), EMA(tokenizer, config.ema_decay)
    times = []
    for step in range(config.steps):
        x = stream.batch(step).contiguous(memory_format=torch.channels_last)
        torch.manual_seed(config.seed * 1_000_003 + step)
        begin = time.process_time()
        y, quantized = tokenizer(x)
        optimizer.zero_grad()
        (reconstruction_loss(x, y, config.losses)[0] + quantized.loss).backward()
        clip_gradients(optimizer, config.optimizer)
        factor, _ = schedule(step, config.steps, config.optimizer, config.optimizer.betas[0])
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        optimizer.step()
        average.update(tokenizer, step)
        times.append(time.process_time() - begin)
    return average.model, 1000 * statistics.median(times)


def _time_alone(quantizer: Quantizer, z: Tensor) -> float:  # [B, d, h, w]
    """Median CPU milliseconds of the quantizer's own forward and backward pass in training, of a copy."""
    quantizer = copy.deepcopy(quantizer).train()
    times = []
    for _ in range(_TIMED_PASSES):
        z.requires_grad_().grad = None
        begin = time.process_time()
        quantized = quantizer(z)
        (quantized.z_q.square().mean() + quantized.loss).backward()
        times.append(time.process_time() - begin)
    return 1000 * statistics.median(times)
