"""Training by several processes, and in micro-batches, equals training by one on the same global batches.

The optimizer is made all but plain gradient descent by a large eps: where AdamW divides a gradient near 0 by its own
size, rounding would decide its sign, and nothing could be compared.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import faults
from same_run import saved_tensors
from tiny_run import ALONE, tiny_config, write_images
from vqdm_train import distributed, trainer
from vqdm_train.config import Config
from vqdm_train.data import EvalImages

SHORT = ("batch_size=8", "steps=10", "sample_every=1000", "checkpoint.save_every=10", "timeout=60")
DESCENT = (
    *("optimizer.eps=1", "optimizer.lr=0.1", "optimizer.codebook_lr=0.1"),
    *("discriminator_optimizer.eps=1", "discriminator_optimizer.lr=0.1"),
)
ADVERSARIAL = ("adversarial.weight=0.5", "discriminator.num_layers=2", "discriminator.base_channels=8")
EMA = (
    *("quantizer.kind=ema", "quantizer.scales=", "quantizer.wasserstein_weight=0", "quantizer.init_std=null"),
    *("quantizer.init=kmeans", "quantizer.ema.decay=0.8"),
)

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("equal")
    images = write_images(folder / "images", count=16)
    trainer.Trainer(tiny_config(images, "steps=1"), folder / "warm", ALONE).run()  # children inherit what it prepares
    return images


def train(config: Config, out: Path, num_ranks: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What so many processes have learnt, all computation in this type."""

    def child() -> None:
        torch.set_default_dtype(dtype)
        prefetch, open_eval = trainer.prefetch, trainer.open_eval

        def cast(*arguments: Any, **options: Any) -> Generator[Tensor, None, None]:
            for batch in prefetch(*arguments, **options):
                yield batch.to(dtype)

        class Cast:
            def __init__(self, held_out: EvalImages) -> None:
                self.held_out, self.description = held_out, held_out.description

            def __len__(self) -> int:
                return len(self.held_out)

            def __getitem__(self, index: int) -> Tensor:
                return self.held_out[index].to(dtype)

        trainer.prefetch = cast
        trainer.open_eval = lambda *arguments: Cast(open_eval(*arguments))  # type: ignore
        world = distributed.init("cpu", config.timeout)
        assert trainer.Trainer(config, out, world).run()
        distributed.finish(world)

    assert [faults.wait(pid) for pid in faults.fork_ranks(num_ranks, child)] == [0] * num_ranks
    return saved_tensors(out / "checkpoints" / "step-000010")


FLOAT64, FLOAT32 = (torch.float64, 1e-10), (torch.float32, 1e-5)


@pytest.mark.parametrize(
    ("settings", "dtype", "tolerance"),
    [
        ((*ADVERSARIAL, "accumulate=2"), *FLOAT64),
        *(
            pytest.param(settings, *precision, marks=pytest.mark.slow)
            for settings, precision in [
                ((), FLOAT64),
                ((), FLOAT32),
                (("accumulate=2",), FLOAT32),
                (ADVERSARIAL, FLOAT64),
                (ADVERSARIAL, FLOAT32),
                ((*ADVERSARIAL, "accumulate=2"), FLOAT32),
                (EMA, FLOAT64),
                ((*EMA, "accumulate=2"), FLOAT64),
            ]
        ),
    ],
)
def test_ranks_equal_one(
    images: Path, tmp_path: Path, settings: tuple[str, ...], dtype: torch.dtype, tolerance: float
) -> None:
    config = tiny_config(images, *SHORT, *DESCENT, *settings)
    one = train(config, tmp_path / "one", 1, dtype)
    assert {value.dtype for value in one.values() if value.is_floating_point()} == {dtype}
    for num_ranks in (2, 4):
        many = train(config, tmp_path / str(num_ranks), num_ranks, dtype)
        assert many.keys() == one.keys()
        for file in {name.partition(".safetensors")[0] for name in one}:
            ours, theirs = (together(tensors, file) for tensors in (many, one))
            assert (ours - theirs).norm() <= tolerance * theirs.norm(), (num_ranks, file)


def together(tensors: dict[str, Tensor], file: str) -> Tensor:
    """All tensors of one file as one vector: a bias near 0 has no digits of its own."""
    return torch.cat([value.double().flatten() for name, value in tensors.items() if name.startswith(f"{file}.")])
