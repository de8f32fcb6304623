"""A training step of VectorQuantizer beside vector-quantize-pytorch and the step as it is written in PyTorch.

    python -m bench.ops.bench_quantizer_step [--seconds 8] [--device cpu|cuda] [--out bench/results]

One step: the forward pass in training mode on features [N, d] that require a gradient, and the backward pass of its
loss. Features are drawn from N(0, I); all start from one codebook. vector-quantize-pytorch is given no k-means and no
revival of codes, and straight-through gradients as ours (its default, rotated ones, costs it more); "EMA" is how it
trains a codebook by default, "learnable" by gradient, as ours. `search alone` is nearest_code: the rest of a step is
the difference. `reference` (float64, pure PyTorch) is timed on 64 rows and scaled. Peak memory is what one step adds,
gradients included.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import harness
from vqdm_cuda import nearest_code, reference
from vqdm_cuda.quantizers import VectorQuantizer

CASES = {  # name: (N, K, d)
    "A": (4096, 16384, 16),
    "B": (4096, 1024, 32),
    "C": (16384, 4096, 64),
}
REFERENCE_ROWS = 64
COMMITMENT = 0.25


class WrittenOut(nn.Module):
    """The usual few lines: all distances by one product, argmin, lookup, two mean squares."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes.clone())

    def indices(self, z: Tensor) -> Tensor:
        return torch.addmm(self.codes.square().sum(1), z, self.codes.T, alpha=-2).argmin(1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            indices = self.indices(z)
        codes = F.embedding(indices, self.codes)
        loss = COMMITMENT * F.mse_loss(z, codes.detach()) + F.mse_loss(codes, z.detach())
        return z + (codes - z).detach(), indices, loss


class Reference(WrittenOut):
    def indices(self, z: Tensor) -> Tensor:
        return reference.nearest_code(z, self.codes)[1]


def quantizers(codes: Tensor) -> dict[str, nn.Module]:
    """Modules that return (z_q, indices, loss) and start from these codes [K, d]."""
    K, d = codes.shape
    ours = VectorQuantizer(K, d, commitment_weight=COMMITMENT)
    ours.load_state_dict({"weight": codes})
    modules: dict[str, nn.Module] = {harness.OURS: ours, "PyTorch, written out": WrittenOut(codes)}
    training: dict[str, dict[str, Any]] = {
        "vector-quantize-pytorch, EMA": {},
        "vector-quantize-pytorch, learnable": {"learnable_codebook": True, "ema_update": False},
    }
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        print("vector-quantize-pytorch is not installed: measured without it")
        training = {}
    for name, options in training.items():
        peer = VectorQuantize(
            dim=d, codebook_size=K, kmeans_init=False, threshold_ema_dead_code=0, accept_image_fmap=False,
            rotation_trick=False, commitment_weight=COMMITMENT, **options,
        )  # fmt: skip
        with torch.no_grad():
            peer._codebook.embed.copy_(codes)
            if hasattr(peer._codebook, "embed_avg"):
                peer._codebook.embed_avg.copy_(codes)
        modules[name] = peer
    return {name: module.to(codes.device).train() for name, module in modules.items()}


def step_of(module: nn.Module, z: Tensor) -> Callable[[], object]:
    features = z.clone().requires_grad_()
    rows = features[None] if type(module).__module__.startswith("vector_quantize_pytorch") else features

    def step() -> None:
        features.grad = None
        module.zero_grad(set_to_none=True)
        module(rows)[2].sum().backward()

    return step


def bench_case(case: str, device: str, threads: int, seconds: float) -> list[dict[str, object]]:
    N, K, d = CASES[case]
    generator = torch.Generator().manual_seed(0)
    z, codes = (torch.randn(count, d, generator=generator).to(device) for count in (N, K))
    steps = {name: step_of(module, z) for name, module in quantizers(codes).items()}
    steps["search alone"] = lambda: nearest_code(z, codes)
    for step in steps.values():
        step()  # what a first call starts (threads, libraries) is not the step's
    memory = {name: harness.peak_extra_bytes(step, device=device) for name, step in steps.items()}
    times = harness.interleaved(steps, seconds=seconds, device=device)
    few = {"reference": step_of(Reference(codes), z[:REFERENCE_ROWS])}
    few_times = harness.interleaved(few, seconds=0, device=device)["reference"]
    times["reference"] = [ms * N / REFERENCE_ROWS for ms in few_times]

    common = {"op": "quantizer_step", "case": case, "N": N, "K": K, "d": d, "dtype": "float32", "device": device,
              "threads": threads}  # fmt: skip
    rows = harness.rows(common, times)
    for row in rows:
        name = str(row["implementation"])
        row |= {"peak_extra_bytes": memory[name]} if name in memory else {"scaled_from_rows": REFERENCE_ROWS}
    return rows


@click.command(help=__doc__)
@click.option("--seconds", default=8.0, help="Time per case and thread count.")
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--out", default="bench/results", type=click.Path(path_type=Path))
def main(seconds: float, device: str, out: Path) -> None:
    harness.run_cases(
        "quantizer_step", CASES, bench_case, "peak_extra_bytes",
        device=device, seconds=seconds, out=out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
