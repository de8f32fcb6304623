"""Reads the published weights of other networks: the one place that opens a file others have pickled.

safetensors files hold no code. A .pth file is read by torch's unpickler for weights alone, and only tensors are taken.
Nothing is ever downloaded: a machine that trains need not reach the network, and a file is put where it is asked for.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

__all__ = [
    "ALEX",
    "DINO",
    "VGG",
    "Published",
    "fill",
    "find_weights",
    "has_shapes_alone",
    "read_weights",
    "shapes_alone",
]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of weights: its name and its publisher's address, the setting that says where it lies, and the one that
    does without."""

    name: str
    url: str
    setting: str
    without: str


VGG = Published(
    name="vgg16-397923af.pth",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    setting="losses.perceptual_weights",
    without="--set losses.perceptual=0",
)
ALEX = Published(
    name="alexnet-owt-7be5be79.pth",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    setting="losses.perceptual_weights",
    without="--set losses.perceptual=0",
)
DINO = Published(
    name="dino_deitsmall16_pretrain.pth",
    url="https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    setting="discriminator.weights",
    without="--set discriminator.network=patch",
)


_shapes_alone = ContextVar("shapes_alone", default=False)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Networks that are built meanwhile keep their tensors as they are, and need no file: what they cost can be told
    without it. Build them on meta."""
    token = _shapes_alone.set(True)
    try:
        yield
    finally:
        _shapes_alone.reset(token)


def has_shapes_alone() -> bool:
    """Whether `shapes_alone` is entered."""
    return _shapes_alone.get()


def find_weights(
    published: Published,
    path: Path | None,  # where the user says it is; None: torch's cache
) -> Path:
    """Where the file is.

    Raises:
        FileNotFoundError: it is not there; the sentence says where it was looked for and where it comes from.
        ValueError: the file in torch's cache has not the sha256 that its name states.
    """
    if has_shapes_alone():
        return Path(published.name)
    if path is None:
        found = Path(torch.hub.get_dir()) / "checkpoints" / published.name
    else:
        found = path.expanduser()
    if not found.is_file():
        raise FileNotFoundError(
            f"{published.setting}: expected {published.name} at {found}, got no such file; it comes from "
            f"{published.url}, {published.setting} says where it lies, {published.without} does without it"
        )
    if path is None:
        _check_name(found)
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file under their names, on the CPU.

    Raises:
        ValueError: it is no such file, or it holds something else than named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file provokes in the reader
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights: expected a .safetensors or .pth file of tensors, got {path}: {reason}") from None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise ValueError(f"weights: expected named tensors and nothing else in {path}, got other values")
    return dict(weights)


def fill(
    module: nn.Module,  # may be on meta
    path: Path,
    published: Callable[[str], str] = str,  # the file's name of a tensor of the module
) -> None:
    """Sets all tensors of a module to those of a file, in float32; what else the file holds is left out.

    Raises:
        ValueError: as `read_weights`; a tensor is not in the file, or has another shape there.
    """
    if has_shapes_alone():
        return
    weights, state = read_weights(path), {}
    for name, value in module.state_dict().items():
        found = weights.get(published(name))
        if found is None or found.shape != value.shape:
            got = "none" if found is None else list(found.shape)
            raise ValueError(f"weights: expected {published(name)} {list(value.shape)} in {path}, got {got}")
        state[name] = found.float()
    module.load_state_dict(state, assign=True)


def _check_name(path: Path) -> None:
    """torch's caches name a file after the first digits of its sha256: NAME-0123abcd.pth."""
    stated = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    if stated is None:
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(stated[1]):
        raise ValueError(f"weights: expected {path} to have a sha256 that starts with {stated[1]}, got {digest[:16]}")
