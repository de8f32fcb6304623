"""`vqdm experiment`: the list, each experiment at a small size, going on after a kill, errors in one sentence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from vqdm_train.cli import main
from vqdm_train.experiments import (
    EXPERIMENTS,
    common,
    criteria_sweeps,
    distances,
    figure3,
    figure5,
    figure11,
    figure12,
    rate_distortion,
    theorems,
)
from vqdm_train.experiments.figure5_methods import METHODS

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "figure5": dataclasses.replace(
        figure5.QUICK,
        codebook_size=64,
        num_features=500,
        num_validation=1000,
        steps=12,
        eval_every=5,
        means=dict.fromkeys(METHODS, (0.0, 2.0)),
    ),
    "rate-distortion": dataclasses.replace(
        rate_distortion.QUICK,
        codebook_sizes=(64,),
        num_features=1000,
        trained_codebook_size=64,
        trained_features=200,
        trained_steps=3,
    ),
    "distances": dataclasses.replace(
        distances.QUICK,
        codebook_size=64,
        num_features=100,
        num_validation=500,
        steps=4,
        learning_rates=(0.0005, 0.005),
        cases=("mean 2", "rank d - 2", "mean 2, 4 a step"),
    ),
    "figure3": dataclasses.replace(figure3.QUICK, num_features=300, codebook_size=40, draws=3),
    "figure11": figure11.QUICK,
    "figure12": figure12.QUICK,
    "theorems": dataclasses.replace(
        theorems.QUICK,
        dims=(1,),
        use_codebook_size=16,
        use_features=(16, 256),
        error_codebook_sizes=(4, 64),
        error_features=64,
        drawn_codebook_sizes=(8,),
        drawn_features=64,
        drawn_repeats=2,
        optimal_codebook_sizes={1: (4,), 2: (8,)},
        optimal_features=256,
        optimal_iterations=4,
    ),
}


def vqdm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, settings in TINY.items():
        monkeypatch.setitem(EXPERIMENTS, name, EXPERIMENTS[name]._replace(full=settings, quick=settings))


@pytest.fixture(scope="module", params=TINY)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of an experiment and the folder of its finished results, which leave the global generator alone."""
    out = tmp_path_factory.mktemp("whole")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    EXPERIMENTS[request.param].run(out, TINY[request.param])
    assert torch.equal(before, torch.get_rng_state())
    return request.param, out


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    cells = {key: {**cell, "seconds": 0} for key, cell in record["results"].items()}
    return {**record, "seconds": 0, "results": cells}


def test_list_names_each_with_its_cost() -> None:
    result = vqdm("experiment", "list")
    assert result.exit_code == 0
    for name, experiment in EXPERIMENTS.items():
        assert name in result.output
        assert experiment.description in result.output
        assert experiment.cost in result.output
    # The experiments on OptVQ, those that train the demo's tokenizer and the sweeps have files of their own.
    elsewhere = {name for name in EXPERIMENTS if name.startswith("optvq-")} | set(criteria_sweeps.FULL)
    assert set(EXPERIMENTS) - elsewhere - {"ablation", "quantizers"} == set(TINY)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", TINY)
def test_json_and_picture(name: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = vqdm("experiment", name, "--out", out, "--quick", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"{out / name}.json\n{out / name}.png\n")
    assert {path.name for path in out.iterdir()} == {f"{name}.json", f"{name}.png"}
    record = read(out / f"{name}.json")
    assert record["finished"]
    assert record["settings"] == json.loads(json.dumps(dataclasses.asdict(TINY[name]))) | {"seed": 3}
    assert record["seconds"] == pytest.approx(sum(cell["seconds"] for cell in record["results"].values()), abs=0.1)
    assert record["verdict"]
    for sentence in record["verdict"]:
        assert sentence.endswith(".")
        assert sentence in result.output
    pixels = np.asarray(Image.open(out / f"{name}.png").convert("RGB"))
    assert min(pixels.shape[:2]) > 400
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, "a blank picture"


def test_a_killed_run_goes_on_with_the_same_numbers(
    whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, finished = whole
    writes = 0
    write_json = common.write_json

    def killed_at_the_third(path: Path, data: object) -> None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise KeyboardInterrupt
        write_json(path, data)

    monkeypatch.setattr(common, "write_json", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        EXPERIMENTS[name].run(tmp_path, TINY[name])
    monkeypatch.setattr(common, "write_json", write_json)
    half = read(tmp_path / f"{name}.json")
    assert not half["finished"]
    assert len(half["results"]) == 2

    EXPERIMENTS[name].run(tmp_path, TINY[name])
    record, expected = read(tmp_path / f"{name}.json"), read(finished / f"{name}.json")
    assert without_times(record) == without_times(expected)
    assert list(record["results"]) == list(expected["results"])
    for key, cell in half["results"].items():
        assert record["results"][key] == cell, "measured again"


def test_a_narrower_plan_throws_no_measured_cell_away(tmp_path: Path) -> None:
    wide = TINY["distances"]
    narrow = dataclasses.replace(wide, cases=wide.cases[:1])
    distances.run(tmp_path, wide)
    before = read(tmp_path / "distances.json")
    distances.run(tmp_path, narrow)
    between = read(tmp_path / "distances.json")
    assert between["results"] == before["results"]
    assert len(between["verdict"]) < len(before["verdict"])
    distances.run(tmp_path, wide)
    assert read(tmp_path / "distances.json")["results"] == before["results"]  # seconds among them: not measured again


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["figur5", "--out", "x"],
            f"NAME: expected list or one of {', '.join(EXPERIMENTS)}, got figur5; did you mean figure5?",
        ),
        (["figure5"], "expected --out DIR for the results, got none"),
        (
            ["figure5", "--out", "x", "--setting", "even"],
            "--setting: expected one of code, uniform, paper, paper-uniform, got even",
        ),
        (
            ["distances", "--out", "x", "--setting", "paper"],
            "--setting: expected none, since distances has one setting, got paper",
        ),
        (["figure5", "--out", "x", "--seed", "-1"], "--seed"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = vqdm("experiment", *arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert isinstance(result.exception, SystemExit)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tiny")
def test_a_folder_that_will_not_do(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        result = vqdm("experiment", "distances", "--out", out)
        assert result.exit_code == 1
        assert result.output == f"Error: --out: expected a folder, got {out}, where a file is in the way\n"
    assert file.read_text() == "mine"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 1, "results": 2}'])
def test_a_file_of_somebody_else_is_not_written_over(content: str, tmp_path: Path) -> None:
    file = tmp_path / "figure5.json"
    file.write_text(content)
    result = vqdm("experiment", "figure5", "--out", tmp_path)
    assert result.exit_code == 1
    assert result.output == f"Error: --out: expected results of this experiment in {file}, got something else\n"
    assert file.read_text() == content


@pytest.mark.usefixtures("tiny")
def test_results_of_other_settings_are_not_written_over(whole: tuple[str, Path]) -> None:
    name, out = whole
    before = (out / f"{name}.json").read_bytes()
    result = vqdm("experiment", name, "--out", out, "--seed", "9")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "expected a folder without results of other settings" in result.output
    assert f"where seed is {TINY[name].seed}, not 9" in result.output
    assert (out / f"{name}.json").read_bytes() == before


# What is said ---------------------------------------------------------------------------------------------------------


def test_confidence_interval() -> None:
    mean, interval = common.confidence([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert interval == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, rel=1e-3)


def test_best_width_needs_a_lead_beyond_its_interval() -> None:
    clear = {"a": [1.0, 1.1, 0.9], "b": [2.0, 2.1, 1.9], "c": [3.0, 3.1, 2.9]}
    assert rate_distortion._best(clear, smallest=True) == "a"
    assert rate_distortion._best(clear, smallest=False) == "c"
    assert rate_distortion._best({"a": [1.0, 2.0, 3.0], "b": [2.0, 1.0, 3.0]}, smallest=True) is None


@pytest.mark.parametrize("whole", ["distances"], indirect=True)
def test_matching_losses_that_are_undefined_are_recorded(whole: tuple[str, Path]) -> None:
    record = read(whole[1] / "distances.json")
    for case in ("rank d - 2", "mean 2, 4 a step"):
        assert record["results"][f"{case}, Wasserstein"]["error"] is None
        for loss in ("KL", "Bhattacharyya"):
            cell = record["results"][f"{case}, {loss}"]
            assert "full rank" in cell["error"]
            assert cell["stopped"] == 0
            assert cell["E"] is None


def test_committed_results_are_finished_and_the_documents_pictures_exist() -> None:
    text = (ROOT / "docs/experiments.md").read_text()
    for name, experiment in EXPERIMENTS.items():
        record = read(ROOT / f"docs/experiments/{name}.json")
        assert record["finished"]
        settings = json.loads(json.dumps(dataclasses.asdict(experiment.full)))
        free = {"means"} if name == "figure5" else set()  # measured in sittings, mean by mean
        assert {key for key in settings if record["settings"][key] != settings[key]} <= free
        assert record["settings"].keys() == settings.keys()
        assert f"](experiments/{name}.png)" in text
        assert (ROOT / f"docs/experiments/{name}.png").stat().st_size > 10_000
        assert f"vqdm experiment {name}" in text
