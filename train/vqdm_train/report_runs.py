"""What a report reads from a run directory: config.json, stats.jsonl, eval.json, usage.json, samples/step-*.png.

Only config.json must be there, so that a run which is still training can be looked at.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Run", "flatten", "read_runs"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory, read. What is not there yet is empty."""

    name: str
    config: dict[str, Any]  # dotted keys
    stats: list[dict[str, Any]] = field(default_factory=list)  # one per logged step, steps rising
    metrics: dict[str, Any] = field(default_factory=dict)  # eval.json
    counts: list[int] = field(default_factory=list)  # [K] times that evaluation used each code
    samples: list[tuple[int, bytes]] = field(default_factory=list)  # (step, PNG), steps rising

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one key of stats.jsonl, where it was logged as a number."""
        points = [(row["step"], row[key]) for row in self.stats if _is_number(row.get(key))]
        return [step for step, _ in points], [float(value) for _, value in points]


def read_runs(folders: list[Path]) -> list[Run]:
    """Read run directories; their names are the folders', with as many parents as it takes to tell them apart."""
    if not folders:
        raise ValueError("write_report: expected at least one run directory, got none")
    return [_read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def flatten(value: object, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf
        for name, inner in value.items()
        for key, leaf in flatten(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _read_run(folder: Path, name: str) -> Run:
    if not (folder / "config.json").is_file():
        raise ValueError(f"write_report: expected a run directory, which holds config.json, got {folder}")
    return Run(
        name=name,
        config=flatten(_read_object(folder / "config.json")),
        stats=_read_stats(folder / "stats.jsonl"),
        metrics=_read_object(folder / "eval.json"),
        counts=_read_counts(folder / "usage.json"),
        samples=_read_samples(folder / "samples"),
    )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"write_report: expected JSON in {path}, got a file that does not parse: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"write_report: expected a JSON object in {path}, got {type(content).__name__}")
    return content


def _read_stats(path: Path) -> list[dict[str, Any]]:
    """One row per step: a resumed run may have logged a step twice, and its last word counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int) or not 0 <= row["step"] < 1 << 63:
                raise ValueError("not a step")
            rows[row["step"]] = row
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break  # the writer is in the middle of this line, or was killed there
            raise ValueError(
                f"write_report: expected a JSON object with a step on line {number} of {path}, got {line[:60]!r}"
            ) from error
    return [rows[step] for step in sorted(rows)]


def _read_counts(path: Path) -> list[int]:
    counts = _read_object(path).get("counts", [])
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(
            f"write_report: expected counts to be a list of whole numbers >= 0 in {path}, got another value"
        )
    return counts


def _read_samples(folder: Path) -> list[tuple[int, bytes]]:
    steps = []
    for path in folder.glob("step-*.png"):
        match = re.fullmatch(r"step-(\d+)", path.stem)
        if match:
            steps.append((int(match[1]), path))
    return [(step, path.read_bytes()) for step, path in sorted(steps)]


def _names(folders: list[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"write_report: expected different run directories, got one twice: {names}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
