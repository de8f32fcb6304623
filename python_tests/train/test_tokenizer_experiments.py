"""The experiments that train the demo's tokenizer: each at a small size, and that their verdicts are the numbers'."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from vqdm_train.cli import main
from vqdm_train.experiments import EXPERIMENTS, ablation, quantizers, tokenizer_training
from vqdm_train.quantizer import KINDS

TINY: dict[str, Any] = {
    "ablation": dataclasses.replace(ablation.QUICK, codebook_sizes=(64,), steps=2, batch_size=2, every=60),
    "quantizers": dataclasses.replace(
        quantizers.QUICK, methods=("vanilla", "FSQ", "multi-scale, Wasserstein"), steps=2, batch_size=2, every=60
    ),
}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.fixture(scope="module", params=TINY)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of an experiment, run from the command line, and the folder of its results."""
    name, out = request.param, tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, name, EXPERIMENTS[name]._replace(quick=TINY[name]))
        torch.manual_seed(5)
        before = torch.get_rng_state()
        result = CliRunner().invoke(main, ["experiment", name, "--out", str(out), "--quick"], catch_exceptions=False)
        assert torch.equal(before, torch.get_rng_state())
    assert result.exit_code == 0, result.output
    record = read(out / f"{name}.json")
    assert record["finished"]
    assert record["verdict"]
    assert all(sentence in result.output for sentence in record["verdict"])
    return name, out


def test_cells_and_pictures(whole: tuple[str, Path]) -> None:
    name, out = whole
    record = read(out / f"{name}.json")
    for key, cell in record["results"].items():
        assert cell["num_images"] == 5
        assert cell["num_tokens"] == 5 * cell["tokens_per_image"]
        assert cell["bits_per_image"] == pytest.approx(cell["tokens_per_image"] * math.log2(cell["codebook_size"]))
        assert cell["psnr"] > cell["psnr_untrained"], f"{key} learnt nothing"
        assert 0 < cell["used"] <= 1 <= cell["perplexity"] <= cell["codebook_size"]
        assert min(cell["quantizer_ms"], cell["step_ms"]) > 0
    for picture in (f"{name}.png", f"{name}-strip.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 200
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 20, "a blank picture"


def test_what_is_there_is_not_measured_again(whole: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, out = whole
    before = read(out / f"{name}.json")

    def again(*arguments: object, **options: object) -> None:
        pytest.fail("measured again")

    module = {"ablation": ablation, "quantizers": quantizers}[name]
    monkeypatch.setattr(module, "train_tokenizer", again)
    EXPERIMENTS[name].run(out, TINY[name])
    assert read(out / f"{name}.json") == before


@pytest.mark.parametrize("whole", ["quantizers"], indirect=True)
def test_a_cell_measured_again_is_the_same(whole: tuple[str, Path]) -> None:
    cell = read(whole[1] / "quantizers.json")["results"]["vanilla"]
    again = quantizers._train(TINY["quantizers"], "vanilla")
    for key in again.keys() - {"step_ms", "quantizer_ms"}:
        assert again[key] == cell[key], key


def test_every_quantizer_starts_from_the_same_weights() -> None:
    settings = quantizers.FULL
    start = quantizers._config(settings, quantizers.Method())
    common = tokenizer_training._drawn(start).state_dict()
    for name in ("EMA", "FSQ", "multi-scale, Wasserstein"):
        config = quantizers._config(settings, quantizers.METHODS[name])
        state = tokenizer_training._from_the_same_weights(config, start).state_dict()
        others = {
            key
            for key, value in state.items()
            if not key.startswith("quantizer.") and not (value.shape == common[key].shape and value.equal(common[key]))
        }
        latents = {key for key in others if state[key].shape != common[key].shape}
        assert others == latents
        assert bool(latents) == (name == "FSQ")


def test_every_kind_and_structure_is_in_it() -> None:
    configs = {name: quantizers._config(quantizers.FULL, method) for name, method in quantizers.METHODS.items()}
    assert {config.quantizer.kind for config in configs.values()} == KINDS.keys()
    assert {config.quantizer.residual_depth for config in configs.values()} == {1, 4}
    assert {config.quantizer.num_heads for config in configs.values()} == {1, 4}
    assert [name for name, config in configs.items() if config.quantizer.scales] == ["multi-scale, Wasserstein"]
    assert {config.quantizer.codebook_size for config in configs.values()} == {1000, 1024}
    assert {(config.steps, config.batch_size, config.seed) for config in configs.values()} == {
        (quantizers.FULL.steps, quantizers.FULL.batch_size, 0)
    }


def test_ablation_differs_in_the_matching_weight_alone() -> None:
    with_, without = (ablation._config(ablation.FULL, 256, matching) for matching in (True, False))
    weightless = dataclasses.replace(with_.quantizer, wasserstein_weight=0.0)
    assert dataclasses.replace(with_, quantizer=weightless) == without
    assert with_.quantizer.wasserstein_weight > 0


def cell(**values: float) -> dict[str, Any]:
    common = {"psnr": 20.0, "psnr_untrained": 8.0, "ssim": 0.5, "used": 0.5, "perplexity": 99.0, "error": 1.0}
    counts = {"num_tokens": 640, "tokens_per_image": 64, "bits_per_image": 640.0, "codebook_size": 1024}
    return {**common, **counts, "step_ms": 9.0, "quantizer_ms": 1.0, **values}


def test_verdict_of_the_ablation() -> None:
    settings = dataclasses.replace(ablation.FULL, codebook_sizes=(256, 1024))
    results = {
        "K = 256, without matching": cell(),
        "K = 256, with matching": cell(psnr=20.5, used=1.0, ssim=0.4),
        "K = 1024, without matching": cell(),
        "K = 1024, with matching": cell(psnr=19.0, used=1.0, perplexity=100.0),
    }
    summary, verdict = ablation._conclude(settings, results)
    assert [row["psnr"]["with"] for row in summary] == [20.5, 19.0]
    assert "PSNR from 20.00 to 20.50 dB (+0.50), SSIM from 0.500 to 0.400 (-0.100)" in verdict[0]
    assert verdict[-1] == (
        "Of 2 codebook sizes, matching is better in U at 2, in C at 1, in PSNR at 1 and in SSIM at 0; "
        "published: in U, PSNR (by 0.44 to 0.46 dB) and SSIM at all three."
    )


def test_verdict_of_the_quantizers() -> None:
    settings = dataclasses.replace(quantizers.FULL, methods=("vanilla", "EMA"))
    results = {"vanilla": cell(), "EMA": cell(psnr=7.5)}
    summary, verdict = quantizers._conclude(settings, results)
    assert [row["method"] for row in summary] == ["vanilla", "EMA"]
    assert "20.00 dB after 200 steps, 8.00 dB untrained (+12.00)" in verdict[0]
    assert verdict[-1] == "1 of 2 quantizers beat their untrained selves; these do not: EMA."


def test_published_values_of_the_ablation() -> None:
    """Table 3 of the first paper: by K, without and with matching."""
    assert [values["used"] for values in ablation.PUBLISHED.values()] == [(89.3, 100), (73.5, 100), (61.8, 100)]
    for values, gain in zip(ablation.PUBLISHED.values(), (0.46, 0.44, 0.46), strict=True):
        assert values["psnr"][1] - values["psnr"][0] == pytest.approx(gain)
