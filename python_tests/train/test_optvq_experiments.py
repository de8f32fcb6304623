"""The experiments on OptVQ: each at a small size, what they share, and that their cells say what they should."""

import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image

from vqdm_cuda import nearest_code, sinkhorn
from vqdm_train.cli import main
from vqdm_train.data import TrainImages
from vqdm_train.evaluate import HeldOut
from vqdm_train.experiments import (
    EXPERIMENTS,
    common,
    optvq_consistency,
    optvq_dynamics,
    optvq_iterations,
    optvq_methods,
    optvq_normalization,
    optvq_table2,
    optvq_table3,
    optvq_training,
)
from vqdm_train.model import ModelConfig

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "optvq-consistency": dataclasses.replace(
        optvq_consistency.QUICK,
        num_features=128,
        codebook_size=16,
        num_copied=32,
        dims=(2, 8),
        moves=(0.0, 2.0),
        lloyd_iters=3,
        shown=8,
    ),
    "optvq-dynamics": dataclasses.replace(
        optvq_dynamics.QUICK, num_features=120, codebook_size=12, steps=30, repeats=1, cases=("ring",)
    ),
    "optvq-iterations": dataclasses.replace(
        optvq_iterations.QUICK,
        num_features=64,
        codebook_size=32,
        num_iters=6,
        many_iters=50,
        shown_iters=(0, 1, 2, 5, 6),
    ),
    "optvq-normalization": dataclasses.replace(
        optvq_normalization.QUICK, num_features=512, codebook_size=32, dims=(2, 512), shown_dims=(2, 512)
    ),
    "optvq-table2": dataclasses.replace(
        optvq_table2.QUICK, codebook_size=32, steps=4, told_every=2, batch_size=4, heads=(1, 4), shown=3
    ),
    "optvq-table3": dataclasses.replace(
        optvq_table3.QUICK,
        mapped_dims=(8,),
        codebook_sizes=(8, 32),
        steps=4,
        told_every=2,
        batch_size=2,
        counted_batches=1,
        shown=3,
        shown_size=32,
    ),
}
SMALL = ModelConfig(network="small", latent_channels=4)
MORE = {name: ("curves", "strip", "usage") if "table" in name else () for name in TINY}


@pytest.fixture(scope="module", autouse=True)
def _few_images() -> Iterator[None]:
    """All of the held-out images take long to evaluate."""

    def few(*arguments: Any, every: int = 1) -> tuple[TrainImages, HeldOut]:
        return optvq_training.open_images(*arguments, every=25 * every)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optvq_table2, "open_images", few)
        patch.setattr(optvq_table3, "open_images", few)
        yield


@pytest.fixture(scope="module", params=TINY)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """The name of an experiment, the folder of its results, and what the command said."""
    name, out = request.param, tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, name, EXPERIMENTS[name]._replace(quick=TINY[name]))
        torch.manual_seed(5)
        before = torch.get_rng_state()
        result = CliRunner().invoke(main, ["experiment", name, "--out", str(out), "--quick", "--seed", "3"])
        assert result.exit_code == 0, result.output
        assert torch.equal(before, torch.get_rng_state())
    return name, out, result.output


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: {**cell, "seconds": 0} for key, cell in record["results"].items()}


def test_every_experiment_is_tried() -> None:
    assert {name for name in EXPERIMENTS if name.startswith("optvq-")} == set(TINY)


def test_json_and_pictures(whole: tuple[str, Path, str]) -> None:
    name, out, told = whole
    pictures = [out / f"{name}.png", *sorted(out.glob(f"{name}-*.png"))]
    assert [path.stem for path in pictures] == [name, *(f"{name}-{key}" for key in MORE[name])]
    assert {path.name for path in out.iterdir()} == {f"{name}.json", *(path.name for path in pictures)}
    assert all(str(path) in told for path in (out / f"{name}.json", *pictures))
    record = read(out / f"{name}.json")
    assert record["finished"]
    assert record["settings"] == json.loads(json.dumps(dataclasses.asdict(TINY[name]))) | {"seed": 3}
    assert record["verdict"]
    for sentence in record["verdict"]:
        assert sentence.endswith(".")
        assert sentence in told
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 250
        assert len(np.unique(pixels[::3, ::3].reshape(-1, 3) @ [65536, 256, 1])) > 20, f"{path.name} is blank"


def test_a_killed_run_goes_on_with_the_same_numbers(
    whole: tuple[str, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, finished, _ = whole
    settings = dataclasses.replace(TINY[name], seed=3)
    monkeypatch.setattr(common, "save_figure", lambda path, figure: None)
    write_json, writes = common.write_json, 0

    def killed_at_the_second(path: Path, data: object) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            raise KeyboardInterrupt
        write_json(path, data)

    monkeypatch.setattr(common, "write_json", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        EXPERIMENTS[name].run(tmp_path, settings)
    monkeypatch.setattr(common, "write_json", write_json)
    half = read(tmp_path / f"{name}.json")
    assert not half["finished"]
    assert len(half["results"]) == 1
    EXPERIMENTS[name].run(tmp_path, settings)
    record, expected = read(tmp_path / f"{name}.json"), read(finished / f"{name}.json")
    assert without_times(record) == without_times(expected)
    for key, cell in half["results"].items():
        assert record["results"][key] == cell, "measured again"


# What they share ------------------------------------------------------------------------------------------------------


def test_published_recursion_has_the_codes_of_sinkhorn_with_its_floor() -> None:
    z, e = torch.randn(60, 5, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64) + 1
    plans = list(optvq_methods.published_plans(-10 * optvq_methods.costs(z, e), 5))
    assert len(plans) == 6
    for t, plan in enumerate(plans):
        assert torch.equal(plan.argmax(1), sinkhorn(z, e, num_iters=t, floor=1e-8, stats="local")[2])
    torch.testing.assert_close(plans[-1].sum(1), torch.full((60,), 1 / 60, dtype=torch.float64), rtol=1e-5, atol=0)


def test_published_recursion_says_code_0_where_a_row_underflows() -> None:
    scores = torch.zeros(4, 3)
    scores[2] = -200  # exp is 0 in float32
    *_, plan = optvq_methods.published_plans(scores, 3)
    assert plan[2].tolist() == [0, 0, 0]
    assert plan[2].argmax() == 0


def test_costs_are_normalised_as_published() -> None:
    z, e = 7 * torch.randn(50, 3) + 100, torch.randn(20, 3)
    c = optvq_methods.costs(z, e)
    assert c.min() == 0
    assert c.std() == pytest.approx(1, rel=1e-4)
    assert torch.equal(optvq_methods.costs(z, e, normalized=False).argmin(1), nearest_code(z, e)[1])


def test_both_methods_give_a_feature_that_is_a_code_to_itself() -> None:
    z = torch.randn(30, 6)
    for method in optvq_methods.METHODS:
        assert torch.equal(optvq_methods.assign(method, z, z), torch.arange(30))


def test_methods_look_different_without_colours() -> None:
    first, second = optvq_methods.LOOKS.values()
    assert first.marker != second.marker
    assert first.line != second.line


def test_smallest_exponent_is_where_float32_ends() -> None:
    edge = optvq_normalization.SMALLEST_EXPONENT
    assert torch.tensor(-edge - 0.01, dtype=torch.float64).exp().float() == 0
    assert torch.tensor(-edge + 0.01, dtype=torch.float64).exp().float() > 0


# What the cells say ---------------------------------------------------------------------------------------------------


def test_transport_training_uses_codes_that_nearest_training_leaves() -> None:
    settings = dataclasses.replace(TINY["optvq-dynamics"], steps=200)
    nearest, transport = (optvq_dynamics._train(settings, "ring", method) for method in optvq_methods.METHODS)
    assert transport["U"] == 1
    assert nearest["U"] < 0.8
    assert transport["E"] < 0.5 * nearest["E"]
    assert nearest["codes"][0] == transport["codes"][0]


def test_one_code_goes_to_the_mean_of_its_features() -> None:
    settings = dataclasses.replace(TINY["optvq-dynamics"], codebook_size=1, steps=400)
    z = torch.randn(50, 2) + torch.tensor([3.0, -1.0])
    for method in optvq_methods.METHODS:
        end = torch.tensor(optvq_dynamics._descend(settings, method, z, torch.zeros(1, 2))["codes"][-1])
        torch.testing.assert_close(end[0], z.mean(0), rtol=0, atol=2e-3)


def test_copied_codes_are_matched_to_their_features() -> None:
    settings = dataclasses.replace(TINY["optvq-consistency"], num_copied=64)
    cell = optvq_consistency._compare(settings, "copied", 8)
    assert cell["equal"][0] == cell["partner nearest"][0] == cell["partner transport"][0] == 1
    assert cell["partner transport"][-1] > 3 * cell["partner nearest"][-1]
    assert "partner nearest" not in optvq_consistency._compare(settings, "drawn", 8)


@pytest.mark.parametrize("whole", ["optvq-normalization"], indirect=True)
def test_what_underflows(whole: tuple[str, Path, str]) -> None:
    name, out, _ = whole
    cells = read(out / f"{name}.json")["results"]
    high = cells["normal, d 512"]
    assert high["raw"]["zero_rows"] == 1
    assert high["raw"]["used"] == 1 / 32  # code 0
    assert high["normalized"]["zero_entries"] == 0
    assert high["normalized"]["as_exact"] > 0.8
    assert cells["outliers, d 512"]["normalized"]["zero_outliers"] == 1
    for cell in cells.values():
        assert sum(cell["raw"]["histogram"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("whole", ["optvq-iterations"], indirect=True)
def test_iterations_settle(whole: tuple[str, Path, str]) -> None:
    name, out, _ = whole
    for cell in read(out / f"{name}.json")["results"].values():
        assert cell["change"][-1] < 0.1 * cell["change"][0]
        assert cell["marginal"][-1] < 0.5 * cell["marginal"][0]
        assert min(cell.get("floored", [1])) == 1
        assert all(0 <= share <= 1 for name in ("changed", "converged", "used") for share in cell[name])


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear_map", [False, True])
def test_both_methods_start_alike_and_differ_in_the_assignment_alone(linear_map: bool) -> None:
    options: dict[str, Any] = {"channels": 1, "num_heads": 1 if linear_map else 2, "linear_map": linear_map, "seed": 4}
    plain, ours = (optvq_training.make_tokenizer(method, SMALL, 16, **options) for method in optvq_methods.METHODS)
    for (name, value), (other, twin) in zip(plain.state_dict().items(), ours.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, twin)
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    assert torch.equal(plain.train()(images)[1].indices, plain.encode(images))
    assert torch.equal(plain.encode(images), ours.encode(images))
    assert ours.train()(images)[1].indices.unique().numel() > plain.encode(images).unique().numel()


def test_training_learns_and_counts() -> None:
    images, held_out = optvq_training.open_images("builtin:digits", 16, 1)
    tokenizer = optvq_training.make_tokenizer("transport", SMALL, 32, channels=1, seed=0)
    training = optvq_training.Training(45, 8, 5e-3, 1e-2, 15, 0)
    cell = optvq_training.train(tokenizer, images, held_out, training, counted_batches=2)
    assert cell["curve"]["step"] == [15, 30, 45]
    assert cell["curve"]["reconstruction"][-1] < 0.8 * cell["curve"]["reconstruction"][0]
    assert cell["num_images"] == 297
    assert cell["num_tokens"] == (297 + 2 * 8) * 16
    assert sum(cell["histogram"]) == pytest.approx(cell["used"], abs=1e-4)
    x = held_out[0][None]
    difference = tokenizer.reconstruct(x) - x
    assert difference.abs().mean() + difference.square().mean() < 2 * cell["loss"]


def test_every_nth_image() -> None:
    _, whole = optvq_training.open_images("builtin:digits", 16, 1)
    _, few = optvq_training.open_images("builtin:digits", 16, 1, every=100)
    assert (len(whole), len(few)) == (297, 3)
    assert torch.equal(few[2], whole[200])


def test_histogram_is_of_shares_of_the_fair_use() -> None:
    told = optvq_training._histogram(torch.tensor([0, 100, 100, 200]))  # 100 is fair
    assert (told["least"], told["most"]) == (100, 200)
    middle = len(told["histogram"]) // 2
    assert told["histogram"][middle] == 0.5
    assert told["histogram"][middle + 3] == 0.25  # an octave up
    assert sum(told["histogram"]) == 0.75


def test_a_picture_holds_the_images() -> None:
    images = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(optvq_training.picture(images)))))
    expected = ((torch.cat(list(images), -1) + 1) * 127.5).round().permute(1, 2, 0)
    assert np.array_equal(pixels, expected.numpy().astype(np.uint8))


def test_tables_say_when_ours_is_worse() -> None:
    cell = {"perplexity": 9.0, "num_tokens": 640}
    settings = dataclasses.replace(TINY["optvq-table3"], mapped_dims=())
    losses = {"nearest": (0.3, 0.2), "transport": (0.4, 0.5)}
    results = {
        optvq_table3._key(method, 8, K): {
            "method": method,
            "d": 8,
            "K": K,
            "loss": x,
            "psnr": 1 / x,
            "used": 0.5,
            **cell,
        }
        for method, pair in losses.items()
        for K, x in zip((8, 32), pair, strict=True)
    }
    verdict = " ".join(optvq_table3._conclude(settings, results).verdict)
    assert "plain VQ: uses 50.00%, 50.00% of 8, 32 codes; its loss is 0.3000, 0.2000, which falls with" in verdict
    assert "its loss is 0.4000, 0.5000, which does not fall with" in verdict
    assert "OptVQ leads by -0.83, -3.00 dB." in verdict


def test_published_values_stand_beside_ours() -> None:
    assert optvq_table3.PUBLISHED["transport"][8][16384] == (0.805, 1.0)
    assert optvq_table3.PUBLISHED["nearest"][64][128] == (1.957, 0.2344)
    settings = dataclasses.replace(TINY["optvq-table2"], heads=(1,), repeats=1)
    cells = {
        optvq_table2._key(method, 1, 0): {"psnr": psnr, "used": used}
        for method, psnr, used in (("nearest", 20.0, 0.01), ("transport", 30.0, 1.0))
    }
    verdict = optvq_table2._conclude(settings, cells).verdict
    assert "OptVQ leads by +10.00 to +10.00 dB over 1 seeds." in verdict[0]
    assert verdict[1] == "Published, MNIST: plain VQ 9.02 dB with 0.20%, OptVQ 34.28 dB with 100.00%."
    assert isinstance(optvq_table2._draw(settings, cells), Figure)


# The documents --------------------------------------------------------------------------------------------------------


def test_every_picture_is_in_the_documents() -> None:
    text = (ROOT / "docs/experiments.md").read_text()
    for name, more in MORE.items():
        for key in more:
            assert (ROOT / f"docs/experiments/{name}-{key}.png").stat().st_size > 10_000
            assert f"](experiments/{name}-{key}.png)" in text


def test_the_documents_numbers_of_the_tables_are_those_measured() -> None:
    text = (ROOT / "docs/experiments.md").read_text()
    for row in read(ROOT / "docs/experiments/optvq-table2.json")["summary"]:
        for system in ("plain VQ", "OptVQ"):
            psnr, used = row[system]["psnr"]["mean"], row[system]["used"]["mean"]
            assert f"| {psnr:.2f} dB, {used:.2%} |" in text
    for row in read(ROOT / "docs/experiments/optvq-table3.json")["summary"]:
        assert f"| {row['loss']:.4f}, {row['used']:.2%} " in text
