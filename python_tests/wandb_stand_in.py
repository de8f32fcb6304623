"""Stands in for the package wandb, which is not installed, and keeps what it was told."""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

Told = list[tuple[str, Any]]


def install(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Returns the calls, in their order, as they will come."""
    told: Told = []

    class Run:
        def log(self, values: dict[str, Any], step: int) -> None:
            told.append(("log", (step, values)))

        def finish(self) -> None:
            told.append(("finish", None))

    def init(**options: Any) -> Run:
        told.append(("init", options))
        return Run()

    module = ModuleType("wandb")
    module.init, module.Image = init, lambda picture: ("image", picture.size)  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("wandb", loader=None, origin="a test")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told
