"""Every kind of quantizer in the trainer: what its config takes and refuses, how its codes start, and short runs."""

import dataclasses
import inspect
import json
import re
import typing
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tiny_run import ALONE, tiny_config, write_images
from vqdm_cuda import (
    QUANTIZERS,
    EMAQuantizer,
    FiniteScalarQuantizer,
    ImageTokenizer,
    MultiHeadQuantizer,
    ResidualQuantizer,
    kmeans,
)
from vqdm_cuda.quantizers.structure import Structure
from vqdm_train.codebook import load_table
from vqdm_train.config import Config
from vqdm_train.presets import demo
from vqdm_train.quantizer import KINDS, QuantizerConfig, build_quantizer
from vqdm_train.settings import apply_json, flatten, parse_settings
from vqdm_train.trainer import Trainer

PLAIN = (
    "quantizer.wasserstein_weight=0",
    "quantizer.scales=",
    "quantizer.init_std=null",
    "quantizer.commitment_weight=0.25",
)
# Settings of each kind that differ from its defaults, for latents of 4 numbers.
KIND_SETTINGS: dict[str, tuple[str, ...]] = {
    "vector": ("gradient=rotation", "init_bound=0.5"),
    "ema": ("ema.decay=0.9", "ema.smoothing=1e-4", "ema.revive_below=0.5", "commitment_weight=1"),
    "online": ("online.decay=0.9", "online.anchors=closest"),
    "linear": ("linear.table_dim=6", "linear.bias=false"),
    "normalized": ("gradient=rotation", "commitment_weight=0.5"),
    "wasserstein": ("wasserstein_weight=1", "queue_size=64"),
    "sinkhorn": ("sinkhorn.eps=0.2", "sinkhorn.linear_map=false"),
    "finite_scalar": ("finite_scalar.levels=5,4,3,3", "codebook_size=180"),
    "lookup_free": (
        *("lookup_free.bit_order=big", "lookup_free.entropy_weight=0.2", "lookup_free.diversity_weight=2"),
        *("lookup_free.temperature=0.1", "codebook_size=16"),
    ),
    "index_backprop": ("index_backprop.entropy_weight=0.1", "index_backprop.temperature=0.5", "codebook_weight=0.5"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def settings_of(kind: str, *more: str) -> list[str]:
    own = [f"quantizer.{setting}" for setting in (*KIND_SETTINGS[kind], *more)]
    return [f"quantizer.kind={kind}", *PLAIN, *own]


def plain(*settings: str) -> Config:
    """A tiny config of one scale, of a vector quantizer, with further settings of the quantizer."""
    start = tiny_config(Path("images"), "quantizer.kind=vector", *PLAIN)
    return apply_json(start, parse_settings(start, [f"quantizer.{setting}" for setting in settings]))


# config ---------------------------------------------------------------------------------------------------------------


def test_kinds_are_those_of_the_config_and_all_options_can_be_set() -> None:
    hint = typing.get_type_hints(QuantizerConfig)["kind"]
    of_vectors = {kind for kind, quantizer in QUANTIZERS.items() if not issubclass(quantizer, Structure)}
    assert set(typing.get_args(hint)) == KINDS.keys() == KIND_SETTINGS.keys() == of_vectors
    for kind, quantizer in KINDS.items():
        own = getattr(QuantizerConfig(), kind, None)
        nested = {} if own is None else {field.name: field.default for field in dataclasses.fields(own)}
        arguments = inspect.signature(quantizer).parameters
        assert nested.keys() <= arguments.keys(), "an option that the quantizer does not have"
        for name, argument in arguments.items():
            assert name in nested or name == "code_dim" or hasattr(QuantizerConfig, name), f"{kind} has {name}"
            if name in nested and argument.default is not inspect.Parameter.empty:
                assert nested[name] == argument.default, f"another default of {kind}.{name}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_set_is_what_the_quantizer_has(kind: str) -> None:
    config = plain(*(setting.removeprefix("quantizer.") for setting in settings_of(kind)))
    quantizer = build_quantizer(config.quantizer, 4)
    assert type(quantizer) is KINDS[kind]
    assert (quantizer.codebook_size, quantizer.code_dim) == (config.quantizer.codebook_size, 4)
    for key in (setting.split("=")[0] for setting in KIND_SETTINGS[kind]):
        if key.rsplit(".")[-1] in quantizer.config:
            assert quantizer.config[key.rsplit(".")[-1]] == flatten(config)[f"quantizer.{key}"], key


def test_structures() -> None:
    residual = build_quantizer(plain("kind=ema", "residual_depth=3").quantizer, 4)
    assert isinstance(residual, ResidualQuantizer)
    assert isinstance(residual.inner, EMAQuantizer)
    assert residual.depth == 3
    heads = build_quantizer(
        plain("kind=finite_scalar", "finite_scalar.levels=8,4", "codebook_size=32", "num_heads=2").quantizer, 4
    )
    assert isinstance(heads, MultiHeadQuantizer)
    assert isinstance(heads.inner, FiniteScalarQuantizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ema.decay=0.9"], "expected ema.decay only with kind=ema, got ema.decay=0.9"),
        (["ema.decay=0"], "expected ema.decay only with kind=ema, got ema.decay=0.0"),
        (["kind=ema", "online.decay=0.9"], "expected online.decay only with kind=online, got online.decay=0.9"),
        (["kind=ema", "codebook_weight=0.5"], "expected codebook_weight only with kind=vector or online or "),
        (["kind=index_backprop", "gradient=rotation"], "expected gradient only with kind=vector or ema or "),
        (["kind=ema", "ema.decay=2"], "EMAQuantizer: expected decay from 0 to less than 1, got 2.0"),
        (["kind=linear", "linear.table_dim=0"], "LinearQuantizer: expected table_dim of at least 1, got 0"),
        (["kind=finite_scalar"], "expected codebook_size 1000 and codes of 4 numbers (model.latent_channels, divided"),
        (["kind=finite_scalar", "finite_scalar.levels=8,8,8,6,5"], "expected codebook_size 15360 and codes of 5 num"),
        (["kind=lookup_free"], "expected codebook_size 16 and codes of 4 numbers (model.latent_channels, divided by"),
        (["kind=normalized", "residual_depth=2"], "ResidualQuantizer: expected inner "),
        (["kind=normalized", "scales=1,8"], "MultiScaleQuantizer: expected inner "),
        (["residual_depth=0"], "expected residual_depth >= 1, and 1 with scales or heads, got 0"),
        (["residual_depth=2", "num_heads=2"], "expected residual_depth >= 1, and 1 with scales or heads, got 2"),
        (["residual_depth=2", "scales=1,8"], "expected residual_depth >= 1, and 1 with scales or heads, got 2"),
        (["init=kmeans", "init_std=1"], "expected init_std=null and init_bound=null beside init=kmeans and table=None"),
        (["init=kmeans", "table=a.npy"], "expected init=kmeans or a table, got init=kmeans and table=a.npy"),
        (["init=kmeans", "scales=1,8"], "expected init=random with scales or residual_depth, whose codes stand for"),
        (["init=kmeans", "residual_depth=2"], "expected init=random with scales or residual_depth, whose codes stand"),
        (["init=kmeans", "kind=linear", "linear.table_dim=9"], "expected linear.table_dim=null with init=kmeans, so"),
        (
            ["init=kmeans", "kind=lookup_free", "codebook_size=16"],
            "expected no codes to start at of kind lookup_free, which has none, got init=kmeans and table=None",
        ),
    ],
)
def test_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r"^quantizer: ") as error:
        plain(*settings)
    assert str(error.value).startswith(f"quantizer: {message}")
    assert "\n" not in str(error.value)


def test_the_documents_settings_are_ones() -> None:
    """Each row of the table in docs/quantizers.md, beside its PLAIN settings."""
    text = (Path(__file__).parents[2] / "docs/quantizers.md").read_text()
    shared = re.findall(r"--set (\S+?)\"?\s", text.split('PLAIN="')[1].split("vqdm train")[0])
    assert len(shared) == 6
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    built = {}
    for _, system, classes, _, settings, _ in rows:
        config = demo()
        config = apply_json(config, parse_settings(config, [*shared, *re.findall(r"`([^`]+)`", settings)]))
        with torch.device("meta"):
            quantizer = build_quantizer(config.quantizer, config.model.latent_channels)
        built[system.strip()] = type(quantizer).__name__
        inner = type(getattr(quantizer, "inner", quantizer)).__name__
        assert f"`{built[system.strip()]}`" in classes or f"`{inner}`" in classes
    assert len(built) == 15


# where the codes start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table.npy", "table.safetensors"])
@pytest.mark.parametrize("settings", [("kind=vector", "scales=1,8"), ("kind=linear", "linear.table_dim=7")])
def test_table_of_a_file(images: Path, tmp_path: Path, name: str, settings: tuple[str, ...]) -> None:
    width = 7 if "kind=linear" in settings else 4
    table = torch.randn(32, width)
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, table.double().numpy())
    else:
        safetensors.torch.save_file({"codes": table}, path)
    trainer = Trainer(run_config(images, f"table={path}", *settings, steps=2), tmp_path / "run", ALONE)
    for quantizer in (trainer.state.tokenizer.quantizer, trainer.state.ema.model.quantizer):
        state = quantizer.state_dict()
        assert torch.equal(state["inner.weight"] if "inner.weight" in state else state["weight"], table)
    assert trainer.run()
    path.unlink()  # a run that goes on needs the file no more
    assert Trainer(run_config(images, f"table={path}", *settings, steps=3), tmp_path / "run", ALONE).run()


def test_a_run_of_an_older_version_had_the_defaults_of_what_it_does_not_state(images: Path, tmp_path: Path) -> None:
    assert Trainer(run_config(images, steps=2), tmp_path, ALONE).run()
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["quantizer"]["init"], saved["quantizer"]["ema"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"may change: quantizer.init \(random -> kmeans\)"):
        Trainer(run_config(images, "init=kmeans", steps=3), tmp_path, ALONE)
    assert Trainer(run_config(images, steps=3), tmp_path, ALONE).run()


def run_config(images: Path, *settings: str, steps: int = 20) -> Config:
    named = [f"quantizer.{setting}" for setting in settings]
    return tiny_config(images, "quantizer.kind=vector", *PLAIN, *named, f"steps={steps}")


def bad_tables(folder: Path) -> dict[str, str]:
    np.save(folder / "three.npy", np.zeros((2, 3, 4), np.float32))
    np.save(folder / "whole.npy", np.zeros((32, 4), np.int64))
    np.save(folder / "objects.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    np.save(folder / "small.npy", np.zeros((31, 4), np.float32))
    np.save(folder / "nan.npy", np.full((32, 4), np.nan, np.float32))
    (folder / "empty.npy").write_bytes(b"")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "codes.txt").write_text("1 2 3")
    safetensors.torch.save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, folder / "two.safetensors")
    matrix = "expected one matrix of floating point numbers in"
    return {
        "three.npy": f"{matrix} {folder / 'three.npy'}, got ['float32 [2, 3, 4]']",
        "whole.npy": f"{matrix} {folder / 'whole.npy'}, got ['int64 [32, 4]']",
        "objects.npy": f"expected a .npy or .safetensors file, got {folder / 'objects.npy'}: Object arrays cannot be",
        "small.npy": f"{folder / 'small.npy'}: VectorQuantizer.set_codes: expected table [32, 4], got [31, 4]",
        "nan.npy": f"{folder / 'nan.npy'}: VectorQuantizer.set_codes: expected finite numbers of torch.float32 in ",
        "empty.npy": f"expected a .npy or .safetensors file, got {folder / 'empty.npy'}: ",
        "empty.safetensors": f"expected a .npy or .safetensors file, got {folder / 'empty.safetensors'}: ",
        "codes.txt": f"expected a .npy or .safetensors file, got {folder / 'codes.txt'}: neither suffix",
        "two.safetensors": f"{matrix} {folder / 'two.safetensors'}, got ['float32 [2, 2]', 'float32 [2, 2]']",
        "none.npy": f"expected a .npy or .safetensors file, got {folder / 'none.npy'}: ",
    }


def test_bad_tables_are_refused_and_claim_no_directory(images: Path, tmp_path: Path) -> None:
    for name, message in bad_tables(tmp_path).items():
        with pytest.raises(ValueError, match=r"^quantizer\.table: ") as error:
            Trainer(run_config(images, f"table={tmp_path / name}"), tmp_path / "run", ALONE)
        assert str(error.value).startswith(f"quantizer.table: {message}"), name
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run" / "config.json").exists()


def test_a_table_keeps_its_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "half.npy", np.arange(6, dtype=np.float16).reshape(3, 2))
    assert torch.equal(load_table(tmp_path / "half.npy"), torch.arange(6.0).view(3, 2))


@pytest.mark.parametrize(
    "settings", [("kind=vector",), ("kind=linear",), ("kind=normalized",), ("kind=sinkhorn",), ("num_heads=2",)]
)
def test_codes_start_at_kmeans_of_the_first_features(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...]
) -> None:
    config = run_config(images, "init=kmeans", *settings)
    trainer = Trainer(config, tmp_path / "run", ALONE)
    quantizer, encoder = trainer.state.tokenizer.quantizer, trainer.state.tokenizer.encoder
    num_batches = 1 if settings == ("num_heads=2",) else 2  # 16 features for each of 32 codes; 256 vectors a batch
    with torch.no_grad():
        z = torch.cat([encoder(trainer.stream.batch(step)) for step in range(num_batches)])
    features = z.movedim(1, -1).reshape(-1, quantizer.codebook.shape[1])
    if settings == ("kind=normalized",):
        features = features / features.norm(dim=1, keepdim=True)
    expected = kmeans(features, 32, seed=config.seed)
    if settings == ("kind=normalized",):
        expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(quantizer.codebook.detach(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(trainer.state.ema.model.quantizer.codebook, quantizer.codebook)
    assert f"k-means of 512 features, of {num_batches} batches" in capsys.readouterr().out
    plain_start = Trainer(run_config(images, *settings), tmp_path / "random", ALONE).state.tokenizer
    for (name, ours), theirs in zip(
        trainer.state.tokenizer.encoder.named_parameters(), plain_start.encoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), f"the start of the codes changed {name}"


# runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"vector", "wasserstein", "sinkhorn"}))  # those run elsewhere
def test_runs_of_every_kind(images: Path, tmp_path: Path, kind: str) -> None:
    config = tiny_config(images, *settings_of(kind), "steps=3", "log_every=1")
    assert Trainer(config, tmp_path, ALONE).run()
    before = Trainer(config, tmp_path / "untrained", ALONE).state.tokenizer
    weights = safetensors.torch.load_file(tmp_path / "checkpoints/step-000003/weights.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    model = ImageTokenizer.from_pretrained(tmp_path / "model")
    assert isinstance(model.quantizer, KINDS[kind])
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert model.encode(x).shape == (2, 8, 8)
    for name, value in before.encoder.state_dict().items():
        assert not torch.equal(weights[f"encoder.{name}"], value) or not value.is_floating_point(), (
            f"{name} stood still"
        )
    lines = (tmp_path / "stats.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert 0 < json.loads(lines[-1])["utilization"] <= 1
