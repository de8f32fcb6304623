"""Hugging Face data sets, with a small stand-in for the package: the part of its interface that is used."""

import io
import sys
import types

import pytest
import torch
from PIL import Image

from image_files import folder_of, picture
from vqdm_train.data import CorruptImageError, check_data, open_dataset


class ImageFeature:
    def __init__(self, decode=True):
        self.decode = decode


class Table:
    def __init__(self, rows, features):
        self.rows, self.features = rows, features

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        assert not any(getattr(feature, "decode", False) for feature in self.features.values()), "it would decode"
        return {name: self.rows[index][name] for name in self.features}

    def select_columns(self, names):
        return Table(self.rows, {name: self.features[name] for name in names})

    def cast_column(self, name, feature):
        return Table(self.rows, {**self.features, name: feature})


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": "a.png"}


def table(seeds, columns=("image",)):
    features = {"label": object(), **{column: ImageFeature() for column in columns}}
    return Table(
        [{"label": 0, **{c: encoded(picture(20, 24, seed=seed)) for c in columns}} for seed in seeds], features
    )


@pytest.fixture
def hub(monkeypatch):
    """Data sets by name, as {split: Table}."""
    known = {}
    module = types.ModuleType("datasets")
    module.Image, module.__version__ = ImageFeature, "4.1.0"
    module.load_dataset = lambda name, split=None: known[name] if split is None else known[name][split]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return known


def test_rows_are_the_images_they_hold(hub, tmp_path):
    hub["user/pictures"] = {"train": table(range(3)), "validation": table([1, 0])}
    train = open_dataset("hf:user/pictures", split="train", size=16)
    held_out = open_dataset("hf:user/pictures", split="eval", size=16)
    named = open_dataset("hf:user/pictures:train", split="eval", size=16)
    assert (len(train), len(held_out), len(named)) == (3, 2, 3)
    assert "3 images (split train, column image)" in train.description
    assert "split validation" in held_out.description
    assert named.name(2) == "user/pictures[2]"
    folder = open_dataset(str(folder_of(tmp_path, 3)), split="eval", size=16)
    assert all(torch.equal(named[i], folder[i]) for i in range(3))
    assert torch.equal(held_out[0], folder[1])


def test_one_split_serves_both(hub):
    hub["a"] = {"all": table([0], columns=["photo"])}
    for split in ("train", "eval"):
        assert "split all, column photo" in open_dataset("hf:a", split=split, size=16).description


def test_rows_may_name_a_file_or_nothing(hub, tmp_path):
    folder_of(tmp_path, 1)
    rows = table([0, 0, 0])
    rows.rows[0]["image"] = {"bytes": None, "path": str(tmp_path / "0000.png")}
    rows.rows[1]["image"] = None
    rows.rows[2]["image"] = {"bytes": b"<html>", "path": None}
    hub["a"] = {"train": rows}
    images = open_dataset("hf:a", split="eval", size=16)
    assert images[0].shape == (3, 16, 16)
    with pytest.raises(CorruptImageError, match=r"a\[1\]: the row has no image"):
        images[1]
    assert [(f.path, f.severity) for f in check_data("hf:a")] == [
        ("a[0]", "note"),
        ("a[1]", "error"),
        ("a[2]", "error"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("hf:", "expected hf:NAME or hf:NAME:SPLIT"),
        ("hf:two", "expected hf:two to have one image column, or one named image, got left, right"),
        ("hf:none", "got none"),
        ("hf:parts", "a train and a validation split or one alone, got a, b; hf:parts:SPLIT names one"),
    ],
)
def test_what_is_not_clear_is_refused(hub, data, message):
    hub["two"] = {"train": table([0], columns=["left", "right"])}
    hub["none"] = {"train": table([0], columns=[])}
    hub["parts"] = {"a": table([0]), "b": table([1])}
    with pytest.raises(ValueError, match=message):
        open_dataset(data, split="train", size=16)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match='got none: pip install "datasets>=4"'):
        open_dataset("hf:a", split="train", size=16)


def test_versions_that_run_code_of_data_sets_are_refused(hub):
    sys.modules["datasets"].__version__ = "3.6.0"
    with pytest.raises(ValueError, match=r"expected datasets >= 4 for hf:a, got 3\.6\.0"):
        open_dataset("hf:a", split="train", size=16)
