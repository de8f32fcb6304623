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
from vqdm_train.experiments import EXPERIMENTS, common, distances, figure5, rate_distortion

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "figure5": dataclasses.replace(
        figure5.QUICK,
        codebook_size=64,
        num_features=500,
        num_validation=1000,
        steps=12,
        eval_every=5,
        means=dict.fromkeys(figure5.METHODS, (0.0, 2.0)),
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
    # The experiments on OptVQ have a file of their own.
    assert {name for name in EXPERIMENTS if not name.startswith("optvq-")} == set(TINY)


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


def test_more_means_keep_what_is_there(tmp_path: Path) -> None:
    few = dataclasses.replace(TINY["figure5"], means={"vanilla": (2.0,)})
    files = figure5.run(tmp_path, few)
    before = read(files.json)["results"]["vanilla, mean 2"]
    more = dict.fromkeys(figure5.METHODS, (2.0,))
    figure5.run(tmp_path, dataclasses.replace(few, means=more))
    after = read(files.json)["results"]
    assert after["vanilla, mean 2"] == before
    assert len(after) == len(figure5.METHODS)


def test_a_changed_method_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(TINY["figure5"], means={"vanilla": (2.0,), "wasserstein": (2.0,)})
    before = read(figure5.run(tmp_path, settings).json)["results"]
    assert before["vanilla, mean 2"]["constants"]["lr"] == 1.0
    assert before["wasserstein, mean 2"]["constants"]["quantizer"]["wasserstein_weight"] == 10.0
    monkeypatch.setitem(figure5.METHODS, "vanilla", figure5.METHODS["vanilla"]._replace(lr=2.0))
    after = read(figure5.run(tmp_path, settings).json)["results"]
    assert after["wasserstein, mean 2"] == before["wasserstein, mean 2"]
    assert after["vanilla, mean 2"]["constants"]["lr"] == 2.0
    assert after["vanilla, mean 2"]["E"] != before["vanilla, mean 2"]["E"]


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["figur5", "--out", "x"],
            "NAME: expected list or one of distances, figure5, optvq-consistency, optvq-dynamics, optvq-iterations, "
            "optvq-normalization, optvq-table2, optvq-table3, rate-distortion, got figur5; did you mean figure5?",
        ),
        (["figure5"], "expected --out DIR for the results, got none"),
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


def test_published_values_of_figure5() -> None:
    """Some of them again, as they were read from the result files of the published code, to three places."""
    assert list(figure5.PUBLISHED["wasserstein"]) == list(figure5.PUBLISHED["vanilla"]) == list(range(9))
    for method, mean, E, U, C, W in (
        ("wasserstein", 0, 0.987, 0.998, 14883, 0.0185),
        ("wasserstein", 1, 0.987, 0.998, 14876, 0.0185),
        ("wasserstein", 2, 0.991, 0.998, 14915, 0.0185),
        ("wasserstein", 4, 1.021, 0.999, 14823, 0.0186),
        ("wasserstein", 5, 1.042, 0.999, 14404, 0.0186),
        ("wasserstein", 8, 1.040, 0.994, 14714, 0.0185),
        ("vanilla", 0, 1.001, 0.997, 14789, 0.036),
        ("vanilla", 2, 2.119, 0.065, 600, 5.55),
        ("vanilla", 5, 7.359, 0.00012, 2, 14.1),
        ("vanilla", 8, 7.999, 0.00006, 1, 22.7),
    ):
        assert figure5.PUBLISHED[method][mean] == pytest.approx((E, U, C, W), rel=4e-3, abs=6e-5)


def test_verdict_of_figure5() -> None:
    settings = dataclasses.replace(figure5.FULL, means={"wasserstein": (0.0, 5.0)})
    cells = {
        f"wasserstein, mean {mean:g}": {"method": "wasserstein", "mean": mean, "E": E, "U": U, "C": 15000.0, "W": 0.02}
        for mean, E, U in ((0.0, 0.98, 0.998), (5.0, 1.03, 0.98))
    }
    summary, verdict = figure5._conclude(settings, cells)
    assert [row["reached"] for row in summary] == [True, False]
    assert summary[1]["difference_percent"]["C"] == pytest.approx(100 * (15000 / 14404 - 1), abs=0.01)
    assert verdict[0].endswith(": reached.")
    assert verdict[1].endswith(": missed.")
    assert "1 of 2 means" in verdict[-1]
    small = figure5._conclude(dataclasses.replace(settings, steps=100), cells)
    assert not any("published" in sentence for sentence in small.verdict)


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
        assert record["settings"] == json.loads(json.dumps(dataclasses.asdict(experiment.full)))
        assert f"](experiments/{name}.png)" in text
        assert (ROOT / f"docs/experiments/{name}.png").stat().st_size > 10_000
        assert f"vqdm experiment {name}" in text


def test_the_documents_numbers_of_figure5_are_those_measured() -> None:
    text = (ROOT / "docs/experiments.md").read_text()
    summary = read(ROOT / "docs/experiments/figure5.json")["summary"]
    rows = [row for row in summary if row["method"] == "wasserstein"]
    assert [row["mean"] for row in rows] == list(range(9))
    for row in rows:
        E, U, C, W = figure5.PUBLISHED["wasserstein"][row["mean"]]
        assert f"| {row['mean']:g} | {row['E']:.4f}, {E:.4f} (" in text
        assert f"| {row['U']:.2%}, {U:.2%} | {row['C']:.0f}, {C:.0f} (" in text
        assert f"| {row['W']:.4f}, {W:.4f} |" in text
        assert row["reached"]
