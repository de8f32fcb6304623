"""How the tables on OptVQ train: both methods from the same weights and codes, on the same images, for as many steps.

    loss = mean |x - y| + mean (x - y)^2 + quantizer's      images x in [-1, 1], reconstructions y

The optimizer is Adam, with a learning rate of their own for the codes; both rates fall to 0 along half a cosine, after
a warm-up of 20 steps, and gradients are clipped to a norm of 1. Codes start from N(0, 1), as published. Tokens of the
evaluation are nearest codes for both methods, where the published numbers have Sinkhorn's for OptVQ.
"""

import base64
import io
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor, nn

from vqdm_cuda import ImageTokenizer, SinkhornQuantizer, Usage
from vqdm_train.data import TrainImages, TrainStream, open_dataset
from vqdm_train.evaluate import HeldOut, evaluate
from vqdm_train.experiments.common import log_axis
from vqdm_train.experiments.optvq_methods import LOOKS, METHODS
from vqdm_train.losses import LossConfig, batch_psnr, reconstruction_loss
from vqdm_train.model import ModelConfig, build_tokenizer
from vqdm_train.quantizer import QuantizerConfig
from vqdm_train.quantizer_options import SinkhornConfig

__all__ = [
    "CURVES",
    "SYSTEMS",
    "EveryNth",
    "Training",
    "draw_curves",
    "draw_histogram",
    "draw_strip",
    "make_tokenizer",
    "open_images",
    "picture",
    "train",
]

SYSTEMS = {"nearest": "plain VQ", "transport": "OptVQ"}  # by what training assigns
_WARMUP = 20
_BINS = 24  # of the histogram of use, on either side of the fair share
# Of a cell's "curve": what each is called.
CURVES = {
    "reconstruction": "reconstruction loss",
    "quantizer": "quantizer's loss",
    "psnr": "PSNR of the batch [dB]",
    "used": "codes used since the last point [%]",
}


class Training(NamedTuple):
    """Constants of one training."""

    steps: int
    batch_size: int
    lr: float
    codebook_lr: float
    told_every: int  # steps between two points of the curve
    seed: int


class EveryNth:
    """Every n-th of some images: all of them take long to evaluate."""

    def __init__(self, images: HeldOut, n: int) -> None:
        self.images, self.n = images, n

    def __len__(self) -> int:
        return -(-len(self.images) // self.n)

    def __getitem__(self, index: int) -> Tensor:  # [C, H, W]
        return self.images[self.n * index]


def open_images(path: str, size: int, channels: int, *, every: int = 1) -> tuple[TrainImages, HeldOut]:
    """Training images, and every n-th of the held-out ones."""
    images = open_dataset(path, split="train", size=size, in_channels=channels, min_scale=None, max_corrupt=0.0)
    return images, EveryNth(open_dataset(path, split="eval", size=size, in_channels=channels), every)


def make_tokenizer(
    method: str,
    model: ModelConfig,
    codebook_size: int,
    *,
    channels: int,
    num_heads: int = 1,
    linear_map: bool = False,
    seed: int,
) -> ImageTokenizer:
    """The same weights, codes and map at the start for both methods, and the same weights of the loss, OptVQ's."""
    config = QuantizerConfig(
        kind="sinkhorn" if method == "transport" or linear_map else "vector",
        codebook_size=codebook_size,
        num_heads=num_heads,
        init_std=1.0,
        commitment_weight=1.0,
        codebook_weight=0.25,
        wasserstein_weight=0.0,
        sinkhorn=SinkhornConfig(linear_map=linear_map),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(model, config, channels)
        if method == "nearest" and linear_map:
            plain = NearestQuantizer(codebook_size, model.latent_channels)
            plain.load_state_dict(tokenizer.quantizer.state_dict())
            tokenizer.quantizer = plain
    return tokenizer


class NearestQuantizer(SinkhornQuantizer):
    """OptVQ's quantizer but for what it is about: in training too, each vector takes its nearest code."""

    def assign_batch(self, rows: Tensor, e: Tensor | None = None) -> Tensor:  # [N, d], [K, d] -> [N]
        return self.assign(rows)


def train(
    tokenizer: ImageTokenizer,
    images: TrainImages,
    held_out: HeldOut,
    training: Training,
    *,
    counted_batches: int = 0,
) -> dict[str, Any]:
    """The curve of the training, and after it the metrics and how often each code is used.

    That is by the held-out images and `counted_batches` more batches of training images: a small set of images has too
    few tokens for a large codebook.
    """
    stream = TrainStream(images, training.batch_size, training.seed)
    codes = tokenizer.quantizer.codebook_parameters()
    weights = [*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": weights, "peak": training.lr}, {"params": codes, "peak": training.codebook_lr}], lr=0.0
    )
    curve: dict[str, list[float]] = {"step": [], **{name: [] for name in CURVES}}
    sums = dict.fromkeys(("reconstruction", "quantizer", "psnr"), 0.0)
    usage = Usage(tokenizer.quantizer.codebook_size)
    tokenizer.train()
    for step in range(training.steps):
        x = stream.batch(step)
        y, quantized = tokenizer(x)
        reconstruction, _ = reconstruction_loss(x, y, LossConfig(l1=1.0, l2=1.0))
        optimizer.zero_grad()
        (reconstruction + quantized.loss).backward()
        nn.utils.clip_grad_norm_([*weights, *codes], 1.0)
        factor = min(1.0, (step + 1) / _WARMUP) * (1 + math.cos(math.pi * step / training.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        optimizer.step()

        told = (reconstruction.item(), quantized.loss.item(), batch_psnr(x, y.detach()).item())
        for name, value in zip(sums, told, strict=True):
            sums[name] += value
        usage.update(quantized.indices)
        if (step + 1) % training.told_every == 0:
            curve["step"].append(step + 1)
            for name, total in sums.items():
                curve[name].append(float(f"{total / training.told_every:.5g}"))
            curve["used"].append(round(100 * usage.utilization(), 3))
            sums = dict.fromkeys(sums, 0.0)
            usage.reset()
    metrics, counts = evaluate(tokenizer, held_out)
    usage.reset()
    usage.counts += torch.tensor(counts)
    for step in range(training.steps, training.steps + counted_batches):
        usage.update(tokenizer.encode(stream.batch(step)))
    return {
        "psnr": metrics["psnr_rgb"],
        "loss": _loss(tokenizer, held_out),
        "used": usage.utilization(),
        "perplexity": usage.perplexity(),
        "num_images": metrics["num_images"],
        "num_tokens": int(usage.counts.sum()),
        **_histogram(usage.counts),
        "curve": curve,
    }


def _histogram(counts: Tensor) -> dict[str, Any]:  # [K]
    """The shares of codes by how often they are used, in bins of a third of an octave around the fair share."""
    used = counts[counts > 0].double()
    bins = (used / counts.double().mean()).log2().mul(3).floor().clamp(-_BINS, _BINS - 1).long() + _BINS
    shares = torch.bincount(bins, minlength=2 * _BINS).double() / len(counts)
    return {"least": int(used.min()), "most": int(used.max()), "histogram": [round(x, 6) for x in shares.tolist()]}


@torch.no_grad()
def _loss(tokenizer: ImageTokenizer, held_out: HeldOut) -> float:
    """Mean over the held-out images of mean |x - y| + mean (x - y)^2."""
    total = 0.0
    for start in range(0, len(held_out), 32):
        x = torch.stack([held_out[i] for i in range(start, min(start + 32, len(held_out)))])
        difference = (tokenizer.reconstruct(x) - x).double()
        total += float((difference.abs() + difference.square()).mean((1, 2, 3)).sum())
    return total / len(held_out)


# Pictures -------------------------------------------------------------------------------------------------------------


def picture(images: Tensor) -> str:  # [B, C, H, W] in [-1, 1]
    """Images side by side as a PNG in base64, so that a cell's JSON holds them."""
    row = torch.cat(list(images), dim=-1).clamp(-1, 1).permute(1, 2, 0)
    pixels = ((row + 1) * 127.5).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def draw_strip(ax: Axes, encoded: str, title: str) -> None:
    """One row of images, of `picture`."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_title(title, fontsize=10, loc="left")
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def draw_curves(axes: list[Axes], cells: dict[str, dict[str, Any]]) -> None:
    """The training of both methods (key: method), one axes for each of CURVES."""
    for ax, (name, title) in zip(axes, CURVES.items(), strict=True):
        for method in METHODS:
            look, curve = LOOKS[method], cells[method]["curve"]
            ax.plot(curve["step"], curve[name], look.line, color=look.color, linewidth=1.8, label=SYSTEMS[method])
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("step")
        if name == "used":
            ax.set_ylim(-3, 103)
        elif name != "psnr":
            log_axis(ax)


def draw_histogram(ax: Axes, cell: dict[str, Any], method: str) -> None:
    """How many codes are used how often, in units of their fair share."""
    look = LOOKS[method]
    edges = 2.0 ** ((np.arange(2 * _BINS + 1) - _BINS) / 3)
    shares = 100 * np.array(cell["histogram"])
    ax.bar(edges[:-1], shares, np.diff(edges), align="edge", color=look.color, edgecolor="white", linewidth=0.4)
    ax.set_xscale("log", base=2)
    ax.set_xticks([1 / 64, 1 / 8, 1, 8, 64], ["1/64", "1/8", "1", "8", "64"])
    ax.axvline(1, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="times used / fair share", ylabel="codes [%]")
    told = f"used {cell['least']} to {cell['most']} times"
    rest = "no code unused," if cell["used"] == 1 else f"{100 * (1 - cell['used']):.3g} % of the codes unused,"
    ax.set_title(f"{SYSTEMS[method]}: {rest}\n{told}", fontsize=9.5)
