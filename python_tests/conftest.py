"""Settings of every test: the same random numbers each time, and no more threads than a small machine has."""

import pytest
import torch

torch.set_num_threads(min(torch.get_num_threads(), 2))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
