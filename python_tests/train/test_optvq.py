"""OptVQ from the command line: the digits' presets trained for a few steps, with heads, evaluated and looked at."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from vqdm_cuda import ImageTokenizer, MultiHeadQuantizer, SinkhornQuantizer
from vqdm_train.cli import main


def vqdm(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "heads"
    settings = ("quantizer.num_heads=4", "quantizer.codebook_size=64", "quantizer.sinkhorn.linear_map=true")
    flags = [word for setting in settings for word in ("--set", setting)]
    said = vqdm("train", "--preset", "optvq-digits", "--steps", "4", "--batch-size", "32", *flags, "--out", out).output
    assert "an image is 64 tokens of 64 codes, 384 bits" in said  # 4 x 4 positions of 4 heads
    return out


def test_evaluation_counts_every_heads_tokens(run: Path) -> None:
    result, usage = json.loads((run / "eval.json").read_text()), json.loads((run / "usage.json").read_text())
    assert (result["num_images"], result["tokens_per_image"], result["bits_per_image"]) == (297, 64, 384)
    assert result["num_tokens"] == sum(usage["counts"]) == 297 * 64
    assert len(usage["counts"]) == 64
    vqdm("eval", run, "--data", "builtin:digits", "--json", run.parent / "eval.json")
    assert json.loads((run.parent / "eval.json").read_text()) == result


def test_the_exported_model(run: Path) -> None:
    model = ImageTokenizer.from_pretrained(run / "model")
    assert isinstance(model.quantizer, MultiHeadQuantizer)
    assert isinstance(model.quantizer.inner, SinkhornQuantizer)
    x = torch.rand(5, 1, 16, 16) * 2 - 1
    tokens = model.encode(x, per_image=True)
    assert tokens.shape == (5, 4, 4, 4)
    assert torch.equal(model.encode(x[3:], per_image=True), tokens[3:])
    assert model.decode(tokens).shape == x.shape


def test_reconstruct_and_report(run: Path, tmp_path: Path) -> None:
    Image.new("L", (16, 16), 128).save(tmp_path / "grey.png")
    vqdm("reconstruct", run, tmp_path / "grey.png", "--out", tmp_path / "pictures")
    with Image.open(tmp_path / "pictures" / "grey-reconstruction.png") as picture:
        assert picture.size == (32, 16)
    vqdm("report", run, "--out", tmp_path / "report.html")
    assert "sinkhorn" in (tmp_path / "report.html").read_text()


def test_transport_trains_codes_that_the_nearest_code_leaves(tmp_path: Path) -> None:
    used = {}
    for preset in ("optvq-digits", "vq-digits"):
        vqdm("train", "--preset", preset, "--steps", "60", "--out", tmp_path / preset)
        used[preset] = json.loads((tmp_path / preset / "stats.jsonl").read_text().splitlines()[-1])["utilization"]
    assert used["optvq-digits"] > 0.25  # of the last ten steps
    assert used["vq-digits"] < 0.02
