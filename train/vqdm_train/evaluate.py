"""Measures a tokenizer on the held-out images of a data set: what eval.json holds.

psnr_*, ssim_*        of the reconstruction from the tokens, clamped to [-1, 1], as the protocol says (metrics.py)
sharpness             how much the reconstructions' luma varies, in that of the originals (metrics.py)
quantization_error    E = mean of ||z - z_q||^2 over latent positions: the sum over the d channels, not its root
utilization           U = codes used at least once by all images together / K
perplexity            C = exp(-sum p_k log p_k) over the same counts
tokens_per_image, bits_per_image      tokens, and tokens * log2 K

Tokens are those of evaluation mode: the nearest codes, but for a quantizer with `sinkhorn_at_evaluation`. Protocol
`rgb`: PSNR and SSIM as scikit-image computes them on float images in [0, 1].
"""

import json
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vqdm_cuda import ImageTokenizer, Usage
from vqdm_train import checkpoint
from vqdm_train.files import replace_file
from vqdm_train.metrics import ImageMetrics

__all__ = ["PROTOCOLS", "HeldOut", "evaluate", "find_model", "image_size", "table", "tokens_per_image", "write_json"]

PROTOCOLS = ("rgb",)
_NEEDS_WEIGHTS = ("lpips_alex", "lpips_vgg", "rfid")


class HeldOut(Protocol):
    """Images to evaluate: `EvalImages`, or some of them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tensor: ...  # [C, H, W] in [-1, 1]


@torch.no_grad()
def evaluate(
    tokenizer: ImageTokenizer,
    images: HeldOut,
    *,
    protocol: str = "rgb",
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], list[int]]:
    """The metrics under the keys of eval.json, and how often each of the K codes was used.

    A metric the protocol does not measure is None, with the reason under `skipped`.

    Raises:
        ValueError: no such protocol, or no images.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"--protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol}")
    if len(images) == 0:
        raise ValueError("evaluate: expected at least one held-out image, got none")
    tokenizer = tokenizer.to(device).eval()
    codebook_size = tokenizer.quantizer.codebook_size
    metrics, usage = ImageMetrics(), Usage(codebook_size)
    squared_error, positions = 0.0, 0
    for start in range(0, len(images), batch_size):
        batch = torch.stack([images[i] for i in range(start, min(start + batch_size, len(images)))])
        z = tokenizer.encoder(batch.to(device))
        quantized = tokenizer.quantizer(z)
        reconstruction = tokenizer.decoder(quantized.z_q).clamp(-1, 1).cpu()
        metrics.update((batch + 1) / 2, (reconstruction + 1) / 2)
        usage.update(quantized.indices)
        squared_error += (z - quantized.z_q).double().square().sum().item()
        positions += z[:, 0].numel()
    fidelity = metrics.result()
    skipped = dict.fromkeys(_NEEDS_WEIGHTS, f"protocol {protocol} does not measure it")
    for name, value in fidelity.items():
        if value is None:
            skipped[name] = f"images of {tokenizer.in_channels} channels have no luma"
        elif not math.isfinite(value):  # JSON has no word for it
            fidelity[name] = None
            skipped[name] = f"it is {value}: reconstructions equal their originals, or originals are of one colour"
    num_tokens = int(usage.counts.sum())
    tokens = num_tokens // len(images)
    result = {
        "protocol": protocol,
        "num_images": len(images),
        "num_tokens": num_tokens,
        **fidelity,
        **dict.fromkeys(_NEEDS_WEIGHTS),
        "quantization_error": squared_error / positions,
        "utilization": usage.utilization(),
        "perplexity": usage.perplexity(),
        "tokens_per_image": tokens,
        "bits_per_image": tokens * math.log2(codebook_size),
        "codebook_size": codebook_size,
        "skipped": skipped,
    }
    return result, usage.counts.tolist()


def tokens_per_image(
    indices: torch.Tensor | list[torch.Tensor],  # [B, ...], or a list of them, one per scale
    num_images: int,
) -> int:
    """How many indices stand for one image."""
    maps = [indices] if isinstance(indices, torch.Tensor) else indices
    return sum(part.numel() for part in maps) // num_images


def find_model(path: Path) -> Path:
    """The folder `from_pretrained` reads, of a run directory, a step folder or a model folder.

    Of a run directory it is that of the newest valid checkpoint, else `model/`. What has a manifest is verified.

    Raises:
        ValueError: the path is none of the three.
        CorruptCheckpointError: its files are not those that were saved.
    """
    if (path / "checkpoints").is_dir() or (path / "stats.jsonl").is_file():
        newest = checkpoint.newest_valid(path / "checkpoints", print)
        path = path if newest is None else newest
    if (path / "state.json").is_file():
        checkpoint.verify(path)
    if (path / "model" / "config.json").is_file():
        path = path / "model"
    if not (path / "model.safetensors").is_file():
        raise ValueError(f"CHECKPOINT: expected a run directory, a step folder or a model folder, got {path}")
    if (path / checkpoint.MANIFEST).is_file():
        checkpoint.verify(path)
    return path


def image_size(
    tokenizer: ImageTokenizer,
    folder: Path,  # what find_model returned
    asked: int | None,
) -> int:
    """Side in pixels of the square images a tokenizer takes: what its scales say, else what was asked for, else that
    of the run around the folder.

    Raises:
        ValueError: none of them says, or the scales say something else than what was asked for.
    """
    latent = tokenizer.quantizer.latent_size
    if latent is not None:
        if latent[0] != latent[1]:
            raise ValueError(f"CHECKPOINT: expected square latents, got {latent[0]} x {latent[1]}")
        size = latent[0] * tokenizer.factor
        if asked not in (None, size):
            raise ValueError(f"--size: expected {size}, which the scales of the tokenizer say, got {asked}")
        return size
    if asked is not None:
        if asked < 1 or asked % tokenizer.factor:
            raise ValueError(f"--size: expected a multiple of {tokenizer.factor}, the tokenizer's factor, got {asked}")
        return asked
    for parent in folder.parents:
        saved = parent / "config.json"
        if saved.is_file() and (parent / "checkpoints").is_dir():
            try:
                return int(json.loads(saved.read_text())["data"]["image_size"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{saved}: expected data.image_size, got a file without it; --size says it") from None
    raise ValueError(f"--size: expected the pixels of the images, which {folder} does not say, got none")


def table(results: dict[str, dict[str, Any]]) -> str:
    """The metrics for people, one a line; several runs side by side, under their names."""
    heads = [[("", name)] if len(results) > 1 else [] for name in results]
    columns = [head + _rows(result) for head, result in zip(heads, results.values(), strict=True)]
    width = 2 + max(len(value) for column in columns for _, value in column)
    lines = zip(*columns, strict=True)
    return "\n".join(f"{line[0][0]:<20}{''.join(f'{value:<{width}}' for _, value in line)}".rstrip() for line in lines)


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    def shown(name: str, form: str) -> str:
        value = result.get(name)  # None where it could not be measured; absent from an earlier release's file
        return "none" if value is None else format(value, form)

    return [
        ("PSNR (RGB)", f"{shown('psnr_rgb', '.2f')} dB"),
        ("PSNR (Y)", f"{shown('psnr_y', '.2f')} dB"),
        ("SSIM (RGB)", shown("ssim_rgb", ".4f")),
        ("SSIM (Y)", shown("ssim_y", ".4f")),
        ("sharpness", shown("sharpness", ".3f")),
        ("quantization error", f"{result['quantization_error']:.4g}"),
        ("codes used", f"{100 * result['utilization']:.1f} % of {result['codebook_size']}"),
        ("perplexity", f"{result['perplexity']:.1f}"),
        ("tokens per image", f"{result['tokens_per_image']} ({result['bits_per_image']:.0f} bits)"),
        ("measured on", f"{result['num_images']} images, {result['num_tokens']} tokens"),
        ("protocol", result["protocol"]),
    ]


def write_json(path: Path, data: object) -> None:
    """Writes a JSON file in one atomic step; what is no regular file (a pipe, a device) is written to as it is."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_text(json.dumps(data, indent=1) + "\n")
        return
    replace_file(path, lambda partial: partial.write_text(json.dumps(data, indent=1) + "\n"))
