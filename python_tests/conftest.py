"""Settings of every test: the same random numbers each time, and no more threads than a small machine has."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

import simt
from vqdm_cuda.ops import _symmetric

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


@pytest.fixture
def route(request, monkeypatch) -> Iterator[str]:
    """By which way symmetric matrices are decomposed. Parametrised indirectly with cases.ROUTES."""
    name = request.param
    for limits in _symmetric.OWN_KERNELS_UP_TO.values():
        monkeypatch.setitem(limits, "cpu", 0 if name == "library" else 256)
    with simt.kernels() if name == "simt" else contextlib.nullcontext():
        yield name
