"""Figures 4, 7, 8 and 9 of the Wasserstein VQ paper at a small size: cells, their order, and what is said of them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqdm_train.experiments import EXPERIMENTS, common, criteria_sweeps
from vqdm_train.experiments.criteria_sweeps import FULL, QUICK, Settings

TINY = {
    name: dataclasses.replace(
        settings,
        means=(0.0, 2.0),
        scales=(*(s for s in settings.scales if s < 1), 1.0, 3.0),
        codebook_sizes=(16, 64),
        dims=(2, 8),
        num_features=(200, 800),
        default_codebook_size=16,
        default_dim=8,
        default_num_features=800,
    )
    for name, settings in QUICK.items()
}
ROOT = Path(__file__).parents[2]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module", params=FULL)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """Settings and folder of a finished run, which leaves the global generator alone."""
    out = tmp_path_factory.mktemp("whole")
    before = torch.get_rng_state()
    files = EXPERIMENTS[request.param].run(out, TINY[request.param])
    assert torch.equal(before, torch.get_rng_state())
    assert files.json == out / f"{request.param}.json"
    return TINY[request.param], out


def test_json_and_picture(whole: tuple[Settings, Path]) -> None:
    settings, out = whole
    record = read(out / f"{settings.name}.json")
    assert record["finished"]
    assert list(record["results"]) == [  # each once, the cheapest first
        "K 16, d 2, N 800",
        "K 16, d 8, N 200",
        "K 16, d 8, N 800",
        "K 64, d 8, N 800",
    ]
    assert all(sentence.endswith(".") and "inf" not in sentence for sentence in record["verdict"])
    pixels = np.asarray(Image.open(out / f"{settings.name}.png").convert("RGB"))
    assert pixels.shape[1] > (2000 if settings.criteria == "EUC" else 1000)
    assert len(np.unique(pixels[::3, ::3].astype(np.int64) @ (1 << 16, 1 << 8, 1))) > 20, "a blank picture"


def test_a_law_of_every_cell_is_that_of_brute_force(whole: tuple[Settings, Path]) -> None:
    settings, out = whole
    both = settings.moving == "both"
    for cell in read(out / f"{settings.name}.json")["results"].values():
        for place, mean, scale in (("match", 0.0, 1.0), ("mean 2", 2.0, 1.0), ("scale 3", 0.0, 3.0)):
            number = list(settings.places).index(place) if both else 0
            rows = []
            for repeat in range(settings.repeats):
                z, e = (
                    criteria_sweeps._base_draw(settings, (repeat, number), cell[size], cell["d"], of).double()
                    for of, size in enumerate(("N", "K"))
                )
                e = mean + scale * e
                z = mean + scale * z if both else z
                dist2, indices = (z[:, None] - e).square().sum(-1).min(1)
                p = torch.bincount(indices, minlength=len(e)).double() / len(z)
                rows.append(
                    (float(dist2.mean()), float((p > 0).double().mean()), math.exp(torch.special.entr(p).sum()))
                )
            for x, values in zip(settings.criteria, zip(*rows, strict=True), strict=False):
                expected = common.confidence(list(values))
                got = cell["laws"][place][x]
                assert (got["mean"], got["interval"]) == pytest.approx(expected, rel=2e-4, abs=1e-5)


def test_base_draws() -> None:
    for settings in FULL.values():
        z = criteria_sweeps._base_draw(settings, (0, 0), 5000, 8, 0)
        assert torch.equal(criteria_sweeps._base_draw(settings, (0, 0), 1000, 8, 0), z[:1000]), "not nested"
        assert abs(float(z.mean())) < 0.02
        if settings.law == "gaussian":
            assert float(z.var()) == pytest.approx(1, abs=0.03)
            assert float(z.abs().max()) > 3
        else:
            assert float(z.var()) == pytest.approx(1 / 3, abs=0.01)
            assert 0.999 < float(z.abs().max()) <= 1
        others = (((0, 0), 1), ((1, 0), 0), ((0, 1), 0))  # the codes, another repeat, another law
        for draw, of in others:
            assert not torch.equal(criteria_sweeps._base_draw(settings, draw, 5000, 8, of), z)


def test_longer_lists_keep_what_is_there(tmp_path: Path) -> None:
    few = TINY["figure9"]
    before = read(criteria_sweeps.run(tmp_path, few).json)["results"]
    more = dataclasses.replace(few, codebook_sizes=(16, 32, 64), dims=(2, 4, 8))
    after = read(criteria_sweeps.run(tmp_path, more).json)["results"]
    assert len(after) == len(before) + 2
    for key, cell in before.items():
        assert after[key] == cell, "measured again"


def test_outcome_needs_more_than_its_interval() -> None:
    assert criteria_sweeps._outcome([1.0, 1.1, 0.9]) == "worse"
    assert criteria_sweeps._outcome([-1.0, -1.1, -0.9]) == "better"
    assert criteria_sweeps._outcome([1.0, -1.0, 0.5]) == "same"
    assert criteria_sweeps._outcome([0.0, 0.0, 0.0]) == "same"


def made_up(settings: Settings, E: dict[str, float]) -> dict[str, Any]:
    """Cells in which the laws named have the outcome and the E given for them at d = 2, and are worse elsewhere."""
    sizes = [(16, 8, 800), (64, 8, 800), (16, 2, 800), (16, 8, 200)]
    return {
        criteria_sweeps._key(K, d, N): {
            "laws": {
                place: {
                    x: {
                        "mean": E[place] * d / K,
                        "interval": 0.0,
                        "against_match": "same" if place == "match" else "better" if d == 2 and x == "E" else "worse",
                    }
                    for x in settings.criteria
                }
                for place in settings.places
            }
        }
        for K, d, N in sizes
    }


def test_verdict_where_codes_move() -> None:
    settings = TINY["figure4"]
    cells = made_up(settings, dict.fromkeys(settings.places, 1.0))
    summary, verdict = criteria_sweeps._conclude_codes(settings, cells)
    assert verdict[0] == (
        "E against other means: best at the match, beyond the 95 % interval, in 2 of 2 settings of K, "
        "1 of 2 settings of d, 2 of 2 settings of N; worse than mean 2 at d = 2."
    )
    assert verdict[3].endswith(
        "U against other scales: best at the match, beyond the 95 % interval, in 2 of 2 "
        "settings of K, 2 of 2 settings of d, 2 of 2 settings of N."
    )
    assert verdict[6] == (
        "E of scale 0.5, not in the paper, against the match: better at d = 2; "
        "worse at K = 16, 64; d = 8; N = 200, 800."
    )
    assert len(summary) == 18
    assert {"criterion": "E", "family": "scale", "over": "d", "match_best": 1, "of": 2} in summary


def test_verdict_where_both_move() -> None:
    settings = TINY["figure8"]
    cells = made_up(settings, {"match": 1.0, "mean 2": 1.1, "scale 3": 9.0})
    summary, verdict = criteria_sweeps._conclude_both(settings, cells)
    assert verdict[0].startswith("E at other means: 10 % from E at the match")
    assert verdict[1].startswith("E / s^2 at other scales: 0 % from E at the match")
    assert verdict[2].startswith(
        "E over K from 16 to 64: 0.5 to 0.125 at the match, times 0.25; falls at every step in 3"
    )
    assert "grows at every step in 3 of 3 laws; largest over smallest in a law at most 4." in verdict[3]
    assert verdict[4].startswith("E over N from 200 to 800: 0.5 to 0.5 at the match, times 1; falls at every step in 0")
    assert [row["over"] for row in summary] == ["mean", "scale", "K", "d", "N"]


def test_the_documents_numbers_are_those_measured() -> None:
    text = (ROOT / "docs/experiments.md").read_text()
    for name, settings in FULL.items():
        results = read(ROOT / f"docs/experiments/{name}.json")["results"]
        for d in settings.dims:
            laws = results[criteria_sweeps._key(settings.default_codebook_size, d, settings.default_num_features)][
                "laws"
            ]
            assert laws["match"]["E"]["mean"] > 0
            assert f"{laws['match']['E']['mean']:.4g}" in text
