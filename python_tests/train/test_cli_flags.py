"""Every flag of every command changes something, and one that is not known is answered with those that look like it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tiny_run import ALONE, tiny_config, write_images
from vqdm_train import distributed, plan, trainer
from vqdm_train.cli import main
from vqdm_train.config import Config
from vqdm_train.distributed import World
from vqdm_train.evaluate import write_json
from vqdm_train.experiments import EXPERIMENTS
from vqdm_train.experiments.common import Files
from vqdm_train.model import build_tokenizer
from vqdm_train.plan import Plan
from vqdm_train.settings import to_dict


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield names, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


FLAGS = [
    (*names, option.opts[-1])
    for names, command in commands(main)
    for option in command.params
    if isinstance(option, click.Option)
]
# What each command is given beside a flag, and what the flag says.
GIVEN = {
    (): [],
    ("train",): ["--preset", "demo", "--out", "{tmp}/run"],
    ("plan",): ["--preset", "demo"],
    ("eval",): ["{model}", "--data", "{images}", "--size", "16"],
    ("reconstruct",): ["{model}", "{images}/image-0.png", "--size", "16", "--out", "{tmp}/out"],
    ("report",): ["{run}", "--out", "{tmp}/page.html"],
    ("experiment",): ["figure5", "--out", "{tmp}/out"],
    ("doctor",): [],
}
SAYS = {
    "--preset": "demo-vanilla",
    "--data": "{other}",
    "--out": "{tmp}/elsewhere",
    "--config": "{seed}",
    "--set": "seed=9",
    "--steps": "7",
    "--batch-size": "8",
    "--seed": "9",
    "--device": "cuda:1",
    "--memory": "3",
    "--protocol": "another",  # of which there is none yet
    "--size": "24",
    "--setting": "paper",
}
SWITCHES = {"--version", "--quick", "--json"}
FILES: dict[tuple[str, ...], str] = {("eval", "--json"): "{tmp}/eval.json"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What commands read: two folders of images, an untrained tokenizer, the directory of a run, a config."""
    folder = tmp_path_factory.mktemp("places")
    images, other = write_images(folder / "images", 2, 28), write_images(folder / "other", 2, 60)
    config = tiny_config(images, "quantizer.scales=", "quantizer.wasserstein_weight=0")
    build_tokenizer(config.model, config.quantizer, 3).save_pretrained(folder / "model")
    (folder / "run").mkdir()
    write_json(folder / "run" / "config.json", to_dict(config))
    write_json(folder / "seed.json", {"seed": 9})
    names = ("model", "run")
    return {"images": images, "other": other, "seed": folder / "seed.json"} | {name: folder / name for name in names}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands hand on to those that would train, plan or measure for long."""
    told: list[Any] = []

    def init(device: str, timeout: float = 60) -> World:
        told.append(device)
        return ALONE

    class Recorder:
        def __init__(self, config: Config, out: Path, world: World) -> None:
            told.append((config, str(out)))

        def run(self) -> bool:
            return False

    def make_plan(config: Config) -> Plan:
        told.append(config)
        halves = {"tokenizer": 1}
        return Plan(
            parameters={"encoder": 1},
            tokens_per_image=1,
            bits_per_image=1,
            memory={"weights": 1},
            step_memory=halves,
            step_memory_per_image=halves,
        )

    def experiment(out: Path, settings: Any) -> Files:
        told.append((str(out), settings))
        return Files(out / "a.json", out / "a.png", [])

    monkeypatch.setattr(distributed, "init", init)
    monkeypatch.setattr(trainer, "Trainer", Recorder)
    monkeypatch.setattr(plan, "make_plan", make_plan)
    monkeypatch.setitem(EXPERIMENTS, "figure5", EXPERIMENTS["figure5"]._replace(run=experiment))
    return told


@pytest.mark.parametrize("flag", FLAGS, ids=" ".join)
def test_the_flag_changes_something(
    flag: tuple[str, ...], places: dict[str, Path], told: list[Any], tmp_path: Path
) -> None:
    *names, name = flag
    says = FILES.get(flag, SAYS.get(name))
    assert (says is None) == (name in SWITCHES and flag not in FILES)
    given = [*names, *GIVEN[tuple(names)]]

    def outcome(folder: str, words: list[str]) -> tuple[Any, ...]:
        told.clear()
        tmp = tmp_path / folder
        tmp.mkdir()
        result = CliRunner().invoke(main, [word.format(**places, tmp=tmp) for word in words])
        files = {str(path.relative_to(tmp)): path.read_bytes() for path in tmp.rglob("*") if path.is_file()}
        said = result.output.replace(str(tmp), "")
        return result.exit_code, said, files, str(told).replace(str(tmp), "")

    without = outcome("without", given)
    assert outcome("again", given) == without
    assert outcome("with", [*given, name, *([] if says is None else [says])]) != without


@pytest.mark.parametrize("flag", FLAGS, ids=" ".join)
def test_an_unknown_flag_is_answered_with_the_nearest(flag: tuple[str, ...]) -> None:
    *names, name = flag
    result = CliRunner().invoke(main, [*names, f"{name}x"])
    assert result.exit_code == 2
    said = result.output.partition("No such option")[2]
    assert name in said.partition(f"{name}x")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--preset", "dmeo"], "got dmeo; did you mean demo?"),
        (
            ["train", "--preset", "demo", "--set", "optimizer.l=3"],
            "unknown key optimizer.l; did you mean optimizer.lr?",
        ),
        (
            ["plan", "--preset", "demo", "--set", "model.with=3"],
            "unknown key model.with; did you mean model.vit.width?",
        ),
        (["experiment", "figur5"], "got figur5; did you mean figure5?"),
        (["experiment", "figure5", "--out", "x", "--setting", "papr"], "got papr; did you mean paper?"),
        (["eval", "{model}", "--data", "{images}", "--size", "16", "--protocol", "rgbb"], "one of rgb, got rgbb"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(arguments: list[str], said: str, places: dict[str, Path]) -> None:
    result = CliRunner().invoke(main, [word.format(**places) for word in arguments])
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.split())
