"""Saved tokenizers: `model.safetensors` holds the tensors, `config.json` plain data, and neither can run code.

A configuration names the class of each part by a word, its `kind`, which is looked up in the one table below; all other
entries are that class's arguments.
"""

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vqdm_cuda.models.decoder import Decoder
from vqdm_cuda.models.encoder import Encoder
from vqdm_cuda.models.small import SmallDecoder, SmallEncoder
from vqdm_cuda.models.vit import ViTDecoder, ViTEncoder
from vqdm_cuda.quantizers import QUANTIZERS

__all__ = ["KINDS", "load", "save"]

FORMAT = "vqdm_cuda.ImageTokenizer"
VERSION = 1

# Every class that a configuration can name, by the part it can be.
KINDS: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "encoder": {network.kind: network for network in (Encoder, SmallEncoder, ViTEncoder)},
    "decoder": {network.kind: network for network in (Decoder, SmallDecoder, ViTDecoder)},
    "quantizer": dict(QUANTIZERS),
}

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Writes both files under temporary names, flushes them to the disk and renames them into place."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "version": VERSION} | config, indent=2, allow_nan=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in ("model.safetensors", "config.json")}
    try:
        save_file(tensors, temporary["model.safetensors"], metadata={"format": "pt"})
        temporary["config.json"].write_text(text + "\n", encoding="utf-8")
        for path in temporary.values():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for name, path in temporary.items():
            path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def load(folder: Path, model_class: Callable[..., Model]) -> Model:
    """Builds the model that the configuration describes and fills it with the tensors; on the CPU, in eval mode."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"from_pretrained: expected JSON in {path}, got text that is not ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or config.get("version") != VERSION:
        got = {key: config.get(key) for key in ("format", "version")} if isinstance(config, dict) else type(config)
        raise ValueError(f"from_pretrained: expected format {FORMAT!r} and version {VERSION} in {path}, got {got}")
    # Shapes are compared before memory is taken: a configuration may ask for more than the file, or the machine, has.
    with torch.device("meta"):
        model = model_class(*(_build(part, config.get(part)) for part in ("encoder", "quantizer", "decoder")))
    _check_tensors(folder / "model.safetensors", model)
    model.to_empty(device="cpu")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def _build(part: str, config: Any) -> nn.Module:
    kind = config.get("kind") if isinstance(config, dict) else config
    if not isinstance(kind, str) or kind not in KINDS[part]:
        raise ValueError(
            f"from_pretrained: expected the kind of {part} to be one of {sorted(KINDS[part])}, got {kind!r}"
        )
    build = KINDS[part][kind]
    arguments = {name: value for name, value in config.items() if name != "kind"}
    unknown = sorted(set(arguments) - set(inspect.signature(build).parameters))
    if unknown:
        raise ValueError(f"from_pretrained: expected options of the {part} of kind {kind!r}, got {unknown}")
    if "inner" in arguments:
        arguments["inner"] = _build(part, arguments["inner"])
    try:
        return build(**arguments)
    except TypeError as error:
        raise ValueError(f"from_pretrained: expected valid options of the {part}, got {arguments} ({error})") from error


def _check_tensors(path: Path, model: nn.Module) -> None:
    """Raises ValueError unless the file holds the model's tensors, name for name and shape for shape."""
    if not path.is_file():
        raise FileNotFoundError(f"from_pretrained: expected a file {path}, got none")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"from_pretrained: expected safetensors in {path}, got a damaged file ({error})") from error
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"from_pretrained: expected {name} {expected.get(name, 'to be absent')} in {path}, "
                f"got {found.get(name, 'none')}"
            )
