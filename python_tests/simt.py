"""The device "simt" of the tests: CPU tensors, with the CUDA kernels run on the host by csrc/simt.

Within `kernels()` the operators of torch.ops.vqdm have, for CPU tensors, the implementation of their CUDA kernels; all
else (checks, gradients, registration) is what it is for every device.
"""

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = Path(os.environ.get("VQDM_SIMT_DIR", _ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"))


def _find() -> Path | None:
    return next(iter(sorted(_FOLDER.glob("_C_simt*.so"))), None)


OPERATORS = (
    "nearest_code",
    "code_sums",
    "moments",
    "sqrtm",
    "gaussian_w2",
    "pair_logsumexp",
    "pair_sums",
    "pair_argmin",
)
AVAILABLE = _find() is not None  # built with -DVQDM_SIMT=ON, as `make test` does


def module() -> ModuleType:
    """The test-only module `_C_simt`, loaded once."""
    if "_C_simt" not in sys.modules:
        path = _find()
        assert path is not None, f"no _C_simt in {_FOLDER}: build with CMAKE_ARGS=-DVQDM_SIMT=ON"
        spec = importlib.util.spec_from_file_location("_C_simt", path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        sys.modules["_C_simt"] = loaded
    return sys.modules["_C_simt"]


@contextlib.contextmanager
def kernels(schedule: str = "random", seed: int = 0) -> Iterator[None]:
    """CPU tensors go to the CUDA kernels, whose threads and blocks run in the order of the schedule."""
    import vqdm_cuda  # noqa: F401  registers the schemas

    module().set_schedule(schedule, seed)
    library = torch.library.Library("vqdm", "IMPL")
    try:
        # torch warns of what is done here on purpose.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for name in OPERATORS:
                library.impl(name, getattr(torch.ops.vqdm_simt, name).default, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
