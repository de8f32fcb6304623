"""A training step of every quantizer beside its counterpart in vector-quantize-pytorch.

    python -m bench.ops.bench_quantizers [--seconds 4] [--only ema] [--device cpu|cuda] [--out bench/results]

One step: the forward pass in training mode on features [N, d] from N(0, I) that require a gradient, and the backward
pass of its loss and of the sum of z_q. Ours and the counterpart have the same sizes, the same codes to start from, and
options that mean the same, but for the weights of loss terms that theirs does not let one set; no k-means and no
revival unless the name says so. Quantizers without a counterpart there stand alone, or beside the usual lines of
PyTorch where those are few. `reference` (float64, pure PyTorch) is timed on 64 rows and scaled. Peak memory is what one
step adds, with gradients.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqdm_cuda as ours
from bench import harness
from vqdm_cuda import reference

SIZES = {"A": (4096, 16384, 16), "few": (1024, 16384, 16), "B": (4096, 1024, 32), "C": (16384, 4096, 64)}  # N, K, d
REFERENCE_ROWS = 64
COMMITMENT = 0.25
LEVELS = (8, 8, 8, 6, 5)  # of the FSQ: 15,360 codes of 5 numbers
BITS = 14  # of the LFQ: 16,384 codes
DEPTH, HEADS = 4, 4


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


class WrittenOutNormalized(WrittenOut):
    """The same of unit vectors and unit codes."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, unit = F.normalize(z), F.normalize(self.codes)
        with torch.no_grad():
            indices = (z @ unit.T).argmax(1)
        codes = F.embedding(indices, unit)
        loss = COMMITMENT * F.mse_loss(z, codes.detach()) + F.mse_loss(codes, z.detach())
        return z + (codes - z).detach(), indices, loss


class Reference(WrittenOut):
    def indices(self, z: Tensor) -> Tensor:
        return reference.nearest_code(z, self.codes)[1]


class WrittenOutIBQ(nn.Module):
    """Index backpropagation as it is published: soft and hard choices as matrices [N, K]."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = z @ self.codes.T
        p, indices = logits.softmax(1), logits.argmax(1)
        hard = F.one_hot(indices, len(self.codes)).to(p.dtype)
        soft_q, hard_q = (hard + p - p.detach()) @ self.codes, F.embedding(indices, self.codes)
        log_q = (logits / 0.01).log_softmax(1)
        q = log_q.exp()
        mean = q.mean(0)
        entropy = -(q * log_q).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
        loss = F.mse_loss(soft_q, z) + F.mse_loss(hard_q.detach(), z) + COMMITMENT * F.mse_loss(hard_q, z.detach())
        return soft_q, indices, loss + 0.05 * entropy


class System(NamedTuple):
    """How ours and its counterpart are made from codes [K, d]; None where there is no counterpart."""

    make: Callable[[Tensor], nn.Module]
    peer: Callable[[Tensor], nn.Module] | None = None
    sizes: tuple[str, ...] = ("A", "B")
    written_out: Callable[[Tensor], nn.Module] | None = None


def started(quantizer: Any, codes: Tensor) -> Any:
    quantizer.set_codes(codes)
    return quantizer


def peer_vq(codes: Tensor, **options: Any) -> nn.Module:
    from vector_quantize_pytorch import VectorQuantize

    K, d = codes.shape
    options = {"dim": d, "rotation_trick": False, "commitment_weight": COMMITMENT, **options}
    if options.pop("learnable", True):
        options |= {"learnable_codebook": True, "ema_update": False}
    peer = VectorQuantize(codebook_size=K, kmeans_init=False, accept_image_fmap=False, **options)
    with torch.no_grad():
        peer._codebook.embed.copy_(codes)
        if hasattr(peer._codebook, "embed_avg"):
            peer._codebook.embed_avg.copy_(codes)
            peer._codebook.cluster_size.fill_(1)
    return peer


def peer_sim(codes: Tensor) -> nn.Module:
    from vector_quantize_pytorch import SimVQ

    K, d = codes.shape
    peer = SimVQ(d, K, rotation_trick=False)
    peer.frozen_codebook.copy_(codes)
    return peer


def peer_residual(codes: Tensor) -> nn.Module:
    from vector_quantize_pytorch import ResidualVQ

    K, d = codes.shape
    peer = ResidualVQ(
        dim=d, num_quantizers=DEPTH, codebook_size=K, shared_codebook=True, kmeans_init=False,
        rotation_trick=False, commitment_weight=COMMITMENT, learnable_codebook=True, ema_update=False,
    )  # fmt: skip
    with torch.no_grad():
        for layer in peer.layers:
            layer._codebook.embed.copy_(codes)
    return peer


def peer_fsq(codes: Tensor) -> nn.Module:
    from vector_quantize_pytorch import FSQ

    return FSQ(list(LEVELS))


def peer_lfq(codes: Tensor) -> nn.Module:
    from vector_quantize_pytorch import LFQ

    return LFQ(dim=BITS, codebook_size=2**BITS, entropy_loss_weight=0.1, commitment_loss_weight=COMMITMENT)


def shape(codes: Tensor) -> tuple[int, int]:
    return codes.shape[0], codes.shape[1]


SYSTEMS: dict[str, System] = {
    "vector": System(
        lambda e: started(ours.VectorQuantizer(*shape(e)), e), peer_vq, ("A", "B", "C"), WrittenOut
    ),
    "vector, rotation trick": System(
        lambda e: started(ours.VectorQuantizer(*shape(e), gradient="rotation"), e),
        lambda e: peer_vq(e, rotation_trick=True),
    ),
    "ema": System(
        lambda e: started(ours.EMAQuantizer(*shape(e), decay=0.8), e), lambda e: peer_vq(e, learnable=False)
    ),
    "ema, revival": System(
        lambda e: started(ours.EMAQuantizer(*shape(e), decay=0.8, revive_below=2.0), e),
        lambda e: peer_vq(e, learnable=False, threshold_ema_dead_code=2),
    ),
    "online, closest": System(lambda e: started(ours.OnlineClusteringQuantizer(*shape(e), anchors="closest"), e)),
    "online, probabilistic": System(lambda e: started(ours.OnlineClusteringQuantizer(*shape(e)), e)),
    "linear": System(lambda e: started(ours.LinearQuantizer(*shape(e), bias=False), e), peer_sim),
    # Theirs has unit codes only where averages move them, not gradients.
    "normalized": System(
        lambda e: started(ours.NormalizedQuantizer(*shape(e)), e), None, ("A", "B"), WrittenOutNormalized
    ),
    "wasserstein": System(lambda e: started(ours.WassersteinQuantizer(*shape(e)), e)),
    "sinkhorn": System(lambda e: started(ours.SinkhornQuantizer(*shape(e)), e)),
    "residual": System(
        lambda e: ours.ResidualQuantizer(started(ours.VectorQuantizer(*shape(e)), e), DEPTH), peer_residual,
        ("few", "B"),
    ),
    "multi-head": System(
        lambda e: ours.MultiHeadQuantizer(started(ours.VectorQuantizer(*shape(e)), e), HEADS),
        lambda e: peer_vq(e, dim=HEADS * e.shape[1], heads=HEADS, codebook_dim=e.shape[1]),
        ("few", "B"),
    ),
    "finite scalar": System(lambda e: ours.FiniteScalarQuantizer(LEVELS), peer_fsq, ("levels",)),
    "lookup-free": System(lambda e: ours.LookupFreeQuantizer(BITS, bit_order="big"), peer_lfq, ("bits",)),
    "index backpropagation": System(
        lambda e: started(ours.IndexBackpropQuantizer(*shape(e)), e), None, ("A", "B"), WrittenOutIBQ
    ),
}  # fmt: skip
SIZES_WITHOUT_A_TABLE = {"levels": (65536, 15360, len(LEVELS)), "bits": (1024, 2**BITS, BITS)}
CASES = {
    f"{system}, {size}": (SIZES | SIZES_WITHOUT_A_TABLE)[size]
    for system, made in SYSTEMS.items()
    for size in made.sizes
}


def step_of(module: nn.Module, z: Tensor) -> Callable[[], object]:
    features = z.clone().requires_grad_()
    theirs = type(module).__module__.startswith("vector_quantize_pytorch")

    def step() -> None:
        features.grad = None
        module.zero_grad(set_to_none=True)
        out = module(features[None] if theirs else features)
        # As in training, where z_q has a gradient from the decoder; FSQ has nothing else.
        own = out[2].sum() if len(out) > 2 and out[2].requires_grad else 0.0
        (out[0].sum() + own).backward()

    return step


def bench_case(case: str, device: str, threads: int, seconds: float) -> list[dict[str, object]]:
    name, _, _ = case.rpartition(", ")
    system, (N, K, d) = SYSTEMS[name], CASES[case]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(K, d, generator=generator).to(device)
    modules: dict[str, nn.Module] = {harness.OURS: system.make(codes)}
    if system.peer is not None and harness.has("vector_quantize_pytorch"):
        modules["vector-quantize-pytorch"] = system.peer(codes)
    if system.written_out is not None:
        modules["PyTorch, written out"] = system.written_out(codes)
    width = HEADS * d if name == "multi-head" else d
    z = torch.randn(N, width, generator=generator).to(device)
    steps = {key: step_of(module.to(device).train(), z) for key, module in modules.items()}
    for step in steps.values():
        step()  # what a first call starts (threads, libraries) is not the step's
    memory = {key: harness.peak_extra_bytes(step, device=device) for key, step in steps.items()}
    times = harness.interleaved(steps, seconds=seconds, device=device)
    if name == "vector":
        few = {"reference": step_of(Reference(codes), z[:REFERENCE_ROWS])}
        few_times = harness.interleaved(few, seconds=0, device=device)["reference"]
        times["reference"] = [ms * N / REFERENCE_ROWS for ms in few_times]

    common = {"op": "quantizers", "case": case, "N": N, "K": K, "d": width, "dtype": "float32", "device": device,
              "threads": threads}  # fmt: skip
    rows = harness.rows(common, times)
    for row in rows:
        key = str(row["implementation"])
        row |= {"peak_extra_bytes": memory[key]} if key in memory else {"scaled_from_rows": REFERENCE_ROWS}
    return rows


@click.command(help=__doc__)
@click.option("--seconds", default=4.0, help="Time per case and thread count.")
@click.option("--only", default="", help="Only the cases whose name begins so.")
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--out", default="bench/results", type=click.Path(path_type=Path))
def main(seconds: float, only: str, device: str, out: Path) -> None:
    cases = {case: sizes for case, sizes in CASES.items() if case.startswith(only)}
    if not cases:
        raise click.ClickException(f"--only: expected the beginning of one of {', '.join(SYSTEMS)}, got {only}")
    harness.run_cases(
        "quantizers", cases, bench_case, "peak_extra_bytes",
        device=device, seconds=seconds, out=out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
