"""Settings of every test: the same random numbers each time, and no more threads than a small machine has."""

from collections.abc import Iterator

import pytest
import torch

import simt

torch.set_num_threads(min(torch.get_num_threads(), 2))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device(request) -> Iterator[str]:
    """Where a test's tensors live. Parametrised indirectly with cases.KERNEL_DEVICES."""
    name = getattr(request, "param", "cpu")
    if name == "simt":
        with simt.kernels():
            yield "cpu"
    else:
        yield name
