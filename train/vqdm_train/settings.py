"""Configs as plain data, and plain data as configs: JSON, and `a.b=c` on the command line.

Keys are the dotted names of the fields of frozen dataclasses that hold each other; values are plain data that must fit
the field's type, and can name no Python object.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Any, Literal, TypeVar

__all__ = ["apply_json", "flatten", "merge", "parse_settings", "to_dict"]

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain data, ready for json.dumps."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: Any) -> dict[str, Any]:
    """Dotted name -> plain value, for every field."""

    def walk(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        return {key: leaf for inner, v in value.items() for key, leaf in walk(v, f"{name}.{inner}").items()}

    return {key: leaf for name, value in to_dict(config).items() for key, leaf in walk(value, name).items()}


def apply_json(config: T, data: object, prefix: str = "") -> T:
    """The config with the values of a (partial) JSON object in place of its own.

    Raises ValueError for an unknown key, naming the nearest one, and for a value that does not fit its field.
    """
    if not isinstance(data, dict):
        raise ValueError(f"config: expected an object for {prefix or 'the file'}, got {json.dumps(data)}")
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key not in hints:
            known = [f"{prefix}.{hint}" if prefix else hint for hint in hints]
            raise ValueError(f"config: unknown key {name}{_did_you_mean(name, known)}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            changes[key] = apply_json(current, value, name)
        else:
            changes[key] = _convert(hints[key], value, name)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def parse_settings(config: Any, settings: typing.Sequence[str]) -> dict[str, Any]:
    """Each `a.b=c` of --set as one JSON object for `apply_json`; ValueError for an unknown key, with the nearest."""
    changes: dict[str, Any] = {}
    known = flatten(config)
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"--set: expected KEY=VALUE, got {setting}")
        if name not in known:
            raise ValueError(f"--set: unknown key {name}{_did_you_mean(name, known)}")
        *parents, last = name.split(".")
        inner = changes
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = _parse(text, known[name])
    return changes


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two JSON objects as one; where both state a value, the one above counts."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse(text: str, current: object) -> object:
    """The plain value that the text of a --set states: JSON, a bare word, or 1,2,3 for a list."""
    if isinstance(current, list) and not text.startswith("[") and text not in ("null", "none", "None"):
        return [_parse(part.strip(), None) for part in text.split(",")] if text else []
    if isinstance(current, str):
        return text
    words = {"none": None, "None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(hint: Any, value: object, name: str) -> Any:
    """The plain value as the field's type, or ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and value in (None, "null", "none", "None"):  # as --set leaves a word for a word
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, name)
    if origin is Literal:
        if value in arguments:
            return value
        choices = ", ".join(str(argument) for argument in arguments)
        raise ValueError(f"config: expected {name} to be one of {choices}, got {json.dumps(value)}")
    if origin is tuple:
        if isinstance(value, list) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            return tuple(_convert(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
        size = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        raise ValueError(
            f"config: expected {name} to be a list of {size}{arguments[0].__name__}, got {json.dumps(value)}"
        )
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is float and number:
        return float(value)  # type: ignore[arg-type]
    if hint is int and number and float(value).is_integer():  # type: ignore[arg-type]
        return int(value)  # type: ignore[call-overload]
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ValueError(f"config: expected {name} to be {_kind(hint)}, got {json.dumps(value)}")


def _kind(hint: type) -> str:
    return {float: "a finite number", int: "a whole number", bool: "true or false", str: "a string"}[hint]


def _did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """The known key that looks most like the name, as a whole or in its last part."""

    def likeness(key: str) -> float:
        whole = difflib.SequenceMatcher(None, name, key).ratio()
        return max(whole, difflib.SequenceMatcher(None, name.split(".")[-1], key.split(".")[-1]).ratio())

    return f"; did you mean {max(known, key=likeness)}?"
