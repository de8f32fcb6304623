"""Evaluation: the contract's keys, values against a plain recomputation, protocols, and what CHECKPOINT may be."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tiny_run import ALONE, tiny_config, write_images
from vqdm_cuda import ImageTokenizer
from vqdm_train.checkpoint import CorruptCheckpointError
from vqdm_train.data import EvalImages, open_eval
from vqdm_train.evaluate import evaluate, find_model, image_size, table, tokens_per_image, write_json
from vqdm_train.model import build_tokenizer
from vqdm_train.trainer import Trainer

KEYS = [
    *("protocol", "num_images", "num_tokens", "psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y", "sharpness"),
    *("lpips_alex", "lpips_vgg", "rfid", "quantization_error", "utilization", "perplexity"),
    *("tokens_per_image", "bits_per_image", "codebook_size", "skipped"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on five images."""
    images = write_images(tmp_path_factory.mktemp("images"), count=5)
    out = tmp_path_factory.mktemp("runs") / "tiny"
    Trainer(tiny_config(images, "steps=2", "checkpoint.save_every=1"), out, ALONE).run()
    write_json(out / "data.json", str(images))
    return out


@pytest.fixture(scope="module")
def held_out(run: Path) -> EvalImages:
    return open_eval(tiny_config(Path(json.loads((run / "data.json").read_text()))).data)


@pytest.fixture
def tokenizer(run: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(run / "model")


# values ---------------------------------------------------------------------------------------------------------------


def test_against_a_plain_recomputation(tokenizer: ImageTokenizer, held_out: EvalImages) -> None:
    result, counts = evaluate(tokenizer, held_out, batch_size=2)
    assert list(result) == KEYS
    assert sorted(result["skipped"]) == ["lpips_alex", "lpips_vgg", "rfid"]
    assert [result[key] for key in result["skipped"]] == [None, None, None]
    psnr, ssim, error = [], [], []
    expected_counts = np.zeros(32, dtype=int)
    for i in range(5):
        image = held_out[i][None]
        indices = tokenizer.encode(image)
        for tokens in indices:
            expected_counts += np.bincount(tokens.flatten().numpy(), minlength=32)
        a = (image[0].permute(1, 2, 0).double().numpy() + 1) / 2
        b = (tokenizer.reconstruct(image)[0].detach().permute(1, 2, 0).double().numpy() + 1) / 2
        psnr.append(peak_signal_noise_ratio(a, b, data_range=1))
        ssim.append(structural_similarity(a, b, data_range=1, channel_axis=2))
        with torch.no_grad():
            z = tokenizer.encoder(image)
        error.append((z - tokenizer.quantizer.decode(indices)).square().sum(1).mean().item())
    p = expected_counts[expected_counts > 0] / expected_counts.sum()
    assert counts == expected_counts.tolist()
    # float32 convolutions round differently by batch size: a few units in the last place of the pixels
    assert result["psnr_rgb"] == pytest.approx(np.mean(psnr), rel=1e-5)
    assert result["ssim_rgb"] == pytest.approx(np.mean(ssim), rel=1e-5)
    assert result["quantization_error"] == pytest.approx(np.mean(error), rel=1e-4)
    assert result["utilization"] == (expected_counts > 0).mean()
    assert result["perplexity"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert (result["num_images"], result["num_tokens"]) == (5, 5 * 85)
    assert (result["tokens_per_image"], result["bits_per_image"]) == (85, 85 * 5)
    assert (result["codebook_size"], result["protocol"]) == (32, "rgb")


def test_single_scale_and_a_codebook_that_is_no_power_of_two(held_out: EvalImages) -> None:
    config = tiny_config(Path("."), "quantizer.scales=", "quantizer.num_phi=0", "quantizer.codebook_size=10")
    result, counts = evaluate(build_tokenizer(config.model, config.quantizer, 3), held_out)
    assert result["tokens_per_image"] == 64
    assert result["bits_per_image"] == pytest.approx(64 * math.log2(10))
    assert sum(counts) == 5 * 64


def test_evaluation_leaves_nothing_behind(tokenizer: ImageTokenizer, held_out: EvalImages) -> None:
    """Twice the same, also from a tokenizer that was training."""
    first = evaluate(tokenizer, held_out)
    tokenizer.train()
    assert evaluate(tokenizer, held_out) == first
    assert json.loads(json.dumps(first[0])) == first[0]


def test_tokens_per_image() -> None:
    assert tokens_per_image(torch.zeros(3, 4, 4), 3) == 16
    assert tokens_per_image([torch.zeros(3, 1, 1), torch.zeros(3, 2, 2)], 3) == 5


def test_table(tokenizer: ImageTokenizer, held_out: EvalImages) -> None:
    result, _ = evaluate(tokenizer, held_out)
    text = table({"run": result})
    assert f"{result['psnr_rgb']:.2f} dB" in text
    assert "of 32" in text
    assert "5 images, 425 tokens" in text
    both = table({"runs/a": result, "runs/b": result | {"psnr_rgb": 12.345}}).splitlines()
    assert both[0].split() == ["runs/a", "runs/b"]
    assert "12.35 dB" in both[1]
    assert len(both) == len(text.splitlines()) + 1
    del result["sharpness"]  # of an earlier release
    assert re.search(r"^sharpness +none$", table({"run": result}), re.MULTILINE)


# CHECKPOINT -----------------------------------------------------------------------------------------------------------


def test_find_model(run: Path) -> None:
    step = run / "checkpoints" / "step-000002"
    assert find_model(run) == step / "model"
    assert find_model(step) == step / "model"
    assert find_model(step / "model") == step / "model"
    assert find_model(run / "model") == run / "model"


def test_find_model_passes_over_a_damaged_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = run / "checkpoints" / "step-000002"
    weights = step / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert find_model(run) == run / "checkpoints" / "step-000001" / "model"
        assert "passing over a damaged checkpoint" in capsys.readouterr().out
        with pytest.raises(CorruptCheckpointError, match="is not what was saved"):
            find_model(step)
    finally:
        weights.write_bytes(whole)


def test_image_size(run: Path, tokenizer: ImageTokenizer) -> None:
    assert image_size(tokenizer, run / "model", None) == 32
    assert image_size(tokenizer, run / "model", 32) == 32
    config = tiny_config(Path("."), "quantizer.scales=", "quantizer.num_phi=0")
    single = build_tokenizer(config.model, config.quantizer, 3)
    assert image_size(single, run / "model", None) == 32  # what the run's config.json says
    assert image_size(single, run / "model", 64) == 64


# bad ------------------------------------------------------------------------------------------------------------------


def test_bad(run: Path, tokenizer: ImageTokenizer, held_out: EvalImages, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--protocol: expected one of rgb, got vqdm"):
        evaluate(tokenizer, held_out, protocol="vqdm")
    with pytest.raises(ValueError, match="CHECKPOINT: expected a run directory, a step folder or a model folder, got"):
        find_model(tmp_path)
    with pytest.raises(ValueError, match="--size: expected 32, which the scales of the tokenizer say, got 64"):
        image_size(tokenizer, run / "model", 64)
    config = tiny_config(Path("."), "quantizer.scales=", "quantizer.num_phi=0")
    with pytest.raises(ValueError, match="--size: expected the pixels of the images"):
        image_size(build_tokenizer(config.model, config.quantizer, 3), tmp_path, None)
