"""Saved tokenizers: what is written is read back, anything else is refused before it costs memory or runs code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqdm_cuda.models import (
    Decoder,
    DecoderNetwork,
    Encoder,
    EncoderNetwork,
    ImageTokenizer,
    SmallDecoder,
    SmallEncoder,
    ViTDecoder,
    ViTEncoder,
    pretrained,
)
from vqdm_cuda.quantizers import (
    EMAQuantizer,
    FiniteScalarQuantizer,
    IndexBackpropQuantizer,
    LinearQuantizer,
    LookupFreeQuantizer,
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    NormalizedQuantizer,
    OnlineClusteringQuantizer,
    Quantizer,
    ResidualQuantizer,
    SinkhornQuantizer,
    VectorQuantizer,
    WassersteinQuantizer,
)

SMALL: dict[str, Any] = {
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "latent_channels": 6,
    "norm_groups": 4,
}

QUANTIZERS = {
    "vector": lambda: VectorQuantizer(50, 6, gradient="rotation"),
    "ema": lambda: EMAQuantizer(50, 6, revive_below=1.0),
    "online": lambda: OnlineClusteringQuantizer(50, 6, anchors="random"),
    "linear": lambda: LinearQuantizer(50, 6, table_dim=9, bias=False),
    "normalized": lambda: NormalizedQuantizer(50, 6, gradient="rotation", init_bound=0.5),
    "wasserstein": lambda: WassersteinQuantizer(50, 6, grad_to="both", squared=True),
    "frozen": lambda: WassersteinQuantizer(
        50, 6, freeze_codebook=True, codebook_weight=0.0, grad_to="features", target="gaussian", target_std=0.05
    ),
    "queue": lambda: MultiScaleQuantizer(WassersteinQuantizer(50, 6, queue_size=40), (1, 4), scale_weights=[1, 3]),
    "multi_scale": lambda: MultiScaleQuantizer(WassersteinQuantizer(50, 6), (1, (2, 1), 4), num_phi=2, phi_ratio=0.25),
    "sinkhorn": lambda: SinkhornQuantizer(50, 6, start_step=3, loss_form="l1", stats="local"),
    "finite scalar": lambda: FiniteScalarQuantizer([8, 5, 5, 3, 2, 7]),
    "lookup free": lambda: LookupFreeQuantizer(6, bit_order="big", temperature=0.5),
    "index_backprop": lambda: IndexBackpropQuantizer(50, 6, entropy_weight=0.1, temperature=0.5),
    "heads": lambda: MultiHeadQuantizer(SinkhornQuantizer(50, 3, linear_map=False), 2, heads_first=True),
    "heads of wasserstein": lambda: MultiHeadQuantizer(WassersteinQuantizer(50, 2, queue_size=40), 3),
    "heads of normalized": lambda: MultiHeadQuantizer(NormalizedQuantizer(50, 3), 2),
    "residual": lambda: ResidualQuantizer(EMAQuantizer(50, 6, revive_below=1.0), 3),
    "residual of wasserstein": lambda: ResidualQuantizer(WassersteinQuantizer(50, 6, queue_size=40), 2),
}


PATCHES: dict[str, Any] = SMALL | {"latent_channels": 8, "latent_patch_size": 2, "z_channels": 5}
VIT: dict[str, Any] = {"latent_channels": 6, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2, "mlp_width": 12}
NETWORKS = {
    "vqgan": lambda: (Encoder(**SMALL), Decoder(**SMALL)),
    "patches of latents": lambda: (Encoder(**PATCHES), Decoder(**PATCHES)),
    "spatial norm": lambda: (Encoder(**SMALL), Decoder(**SMALL, spatial_norm=True)),
    "small": lambda: (SmallEncoder(3, 6), SmallDecoder(3, 6)),
    "vit": lambda: (ViTEncoder(**VIT), ViTDecoder(**VIT)),
}


def tokenizer(kind: str = "vector") -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(Encoder(**SMALL), QUANTIZERS[kind](), Decoder(**SMALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, path: str, value: object) -> None:
    """Sets one entry, such as "encoder.dropout", of the configuration."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = path.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    (folder / "config.json").write_text(json.dumps(config))


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
def test_what_is_saved_is_loaded(kind, memory_format, tmp_path):
    model = tokenizer(kind)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    model(x)  # so that buffers hold something
    model.eval().save_pretrained(tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    loaded = ImageTokenizer.from_pretrained(str(tmp_path / "new" / "folder"))
    assert loaded.config == model.config
    assert not loaded.training
    assert type(loaded.quantizer) is type(model.quantizer)
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert list(state) == list(loaded_state)
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    assert not [name for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()] if tensor.is_meta]
    torch.testing.assert_close(loaded(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_comes_back(network, tmp_path):
    torch.manual_seed(0)
    encoder, decoder = NETWORKS[network]()
    model = ImageTokenizer(encoder, VectorQuantizer(50, encoder.latent_channels), decoder).eval()
    model.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert json.loads(json.dumps(model.config)) == model.config
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    tokens = model.encode(x)
    assert tokens.shape == (2, 16 // model.factor, 24 // model.factor)
    assert torch.equal(loaded.encode(x), tokens)
    assert torch.equal(loaded.decode(tokens), model.reconstruct(x))


def test_every_network_that_can_be_saved_can_be_named():
    encoders, decoders = zip(*(build() for build in NETWORKS.values()), strict=True)
    assert set(pretrained.KINDS["encoder"]) == {encoder.kind for encoder in encoders}
    assert set(pretrained.KINDS["decoder"]) == {decoder.kind for decoder in decoders}
    assert all(isinstance(encoder, EncoderNetwork) for encoder in encoders)
    assert all(isinstance(decoder, DecoderNetwork) for decoder in decoders)


def test_saving_again_replaces_both_files(folder):
    model = tokenizer("multi_scale")
    model.save_pretrained(folder)
    assert ImageTokenizer.from_pretrained(folder).config == model.config
    assert len(list(folder.iterdir())) == 2


def test_a_save_that_fails_leaves_the_last_one(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(tensors: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pretrained, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        tokenizer("multi_scale").save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_every_quantizer_that_can_be_saved_can_be_named():
    assert set(pretrained.KINDS["quantizer"]) == {build().kind for build in QUANTIZERS.values()}
    assert all(issubclass(build, Quantizer) for build in pretrained.KINDS["quantizer"].values())  # type: ignore[arg-type]


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        ImageTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "expected format .* got {'format': 'other', 'version': 1}"),
        ("version", 2, "expected format .* 'version': 2"),
        (
            "encoder",
            None,
            r"expected the kind of encoder to be one of \['encoder', 'small_encoder', 'vit_encoder'\], got None",
        ),
        ("encoder.kind", "decoder", r"one of \['encoder', 'small_encoder', 'vit_encoder'\], got 'decoder'"),
        ("quantizer.kind", "os.system", r"one of \['ema', .*'multi_head', .*'wasserstein'\], got 'os.system'"),
        ("quantizer.kind", ["vector"], r"one of .*, got \['vector'\]"),
        ("quantizer.exec", "rm", r"expected options of the quantizer of kind 'vector', got \['exec'\]"),
        ("quantizer.self", 1, r"expected options of the quantizer of kind 'vector', got \['self'\]"),
        ("quantizer.code_dim", "six", "expected valid options of the quantizer"),
        ("quantizer.inner", {"kind": "vector"}, r"expected options of the quantizer of kind 'vector', got \['inner'\]"),
        ("encoder.base_channels", 16, r"expected encoder\.\S+ \[16\S* .*got \[8"),
        ("quantizer.codebook_size", 10**12, r"expected quantizer.weight \[1000000000000, 6\] .*, got \[50, 6\]"),
    ],
)
def test_a_configuration_that_is_not_ours_is_refused(folder, path, value, message):
    change(folder, path, value)
    with pytest.raises(ValueError, match=f"from_pretrained: .*{message}"):
        ImageTokenizer.from_pretrained(folder)


def test_damaged_files_are_refused(folder):
    tensors = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(tensors[: len(tensors) // 2])
    with pytest.raises(ValueError, match=r"expected safetensors in .*, got a damaged file"):
        ImageTokenizer.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON in"):
        ImageTokenizer.from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected format"):
        ImageTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["missing", "more", "shape"])
def test_tensors_of_another_model_are_refused(folder, damage):
    tensors = load_file(folder / "model.safetensors")
    if damage == "missing":
        del tensors["quantizer.weight"]
    elif damage == "more":
        tensors["extra"] = torch.zeros(1)
    else:
        tensors["quantizer.weight"] = torch.zeros(50, 7)
    save_file(tensors, folder / "model.safetensors")
    message = {
        "missing": r"expected quantizer.weight \[50, 6\] in .*, got none",
        "more": "expected extra to be absent in",
        "shape": r"expected quantizer.weight \[50, 6\] in .*, got \[50, 7\]",
    }[damage]
    with pytest.raises(ValueError, match=message):
        ImageTokenizer.from_pretrained(folder)
