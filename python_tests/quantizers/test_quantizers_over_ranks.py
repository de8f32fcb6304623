"""Two processes with half of the images each train a quantizer as one process with all of them does."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from cases import assert_close
from vqdm_cuda.quantizers import MultiScaleQuantizer, WassersteinQuantizer

NUM_RANKS = 2


def step(quantizer: MultiScaleQuantizer, z: Tensor) -> dict[str, Tensor]:
    """The gradients of one training step, its matching term and the usage after it."""
    z = z.clone().requires_grad_()
    quantized, terms = quantizer(z, return_terms=True)
    quantized.loss.backward()
    gradients = {f"grad {name}": p.grad for name, p in quantizer.named_parameters() if p.grad is not None}
    assert z.grad is not None
    return gradients | {"grad z": z.grad, "wasserstein": terms["wasserstein"], "usage": quantizer.usage}


def quantizer_and_images() -> tuple[MultiScaleQuantizer, Tensor]:
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(WassersteinQuantizer(30, 4, grad_to="both"), (1, 2, 4)).double()
    return quantizer, torch.randn(6, 4, 4, 4, dtype=torch.float64)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_RANKS)
    quantizer, images = quantizer_and_images()
    quantizer.group = dist.group.WORLD
    out = step(quantizer, images.chunk(NUM_RANKS)[rank])
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, f"{folder}/rank{rank}.safetensors")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=NUM_RANKS)
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(NUM_RANKS)]
    expected = step(*quantizer_and_images())
    assert len(expected) == 10  # of the codebook, three phi of two tensors, z; and two values
    for rank in ranks:
        assert torch.equal(rank["wasserstein"], expected["wasserstein"])
        assert torch.equal(rank["usage"], expected["usage"])
    for name, gradient in expected.items():
        if name == "grad z":
            # Each rank's loss is a mean over its own images: twice as large for each of them.
            assert_close(torch.cat([rank[name] for rank in ranks]), NUM_RANKS * gradient, 1e-12)
        elif name.startswith("grad"):
            # What DistributedDataParallel does with parameters.
            assert_close(torch.stack([rank[name] for rank in ranks]).mean(0), gradient, 1e-12)
