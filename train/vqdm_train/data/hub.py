"""Images of a Hugging Face data set: `hf:NAME`, or `hf:NAME:SPLIT`, through the `datasets` package, an optional one.

The data set is downloaded (or taken from that package's cache) whole, as a table with random access. The image column
is found by its type; its bytes are decoded here, under the same limits as a file's. Data sets that are programs are not
run: version 4 of the package has no way to.

Splits: `hf:NAME` is trained on its `train` and evaluated on its `validation`, `val` or `test`, in this order; where it
lacks those, its one split serves both. `hf:NAME:SPLIT` is that split for both.
"""

import io
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["HubImages"]

_EVAL_NAMES = ("validation", "val", "test")


class HubImages:
    """The encoded images of one split. Raises ValueError without the package, the split, or one image column."""

    def __init__(self, data: str, split: str) -> None:
        try:
            import datasets  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise ValueError(
                f'open_dataset: expected the package datasets for {data}, got none: pip install "datasets>=4"'
            ) from None
        if int(datasets.__version__.partition(".")[0]) < 4:
            raise ValueError(f"open_dataset: expected datasets >= 4 for {data}, got {datasets.__version__}")
        name, _, asked = data.removeprefix("hf:").partition(":")
        if not name:
            raise ValueError(f"open_dataset: expected hf:NAME or hf:NAME:SPLIT, got {data}")
        if asked:
            table, chosen = datasets.load_dataset(name, split=asked), asked
        else:
            splits = datasets.load_dataset(name)
            chosen = _choose(list(splits), split, data)
            table = splits[chosen]
        self._column = _image_column(table.features, datasets.Image, data)
        undecoded = datasets.Image(decode=False)  # as the package would decode without a limit on the size
        self._table = table.select_columns([self._column]).cast_column(self._column, undecoded)
        self._name = name
        self.description = f"{data}: {len(self._table)} images (split {chosen}, column {self._column})"

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def open(self, index: int) -> BinaryIO:
        image: dict[str, Any] | None = self._table[index][self._column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise OSError("the row has no image")
        return Path(image["path"]).open("rb") if image["bytes"] is None else io.BytesIO(image["bytes"])


def _choose(splits: list[str], split: str, data: str) -> str:
    held_out = next((name for name in _EVAL_NAMES if name in splits), None)
    if "train" in splits and held_out is not None:
        return "train" if split == "train" else held_out
    if len(splits) == 1:
        return splits[0]
    raise ValueError(
        f"open_dataset: expected {data} to have a train and a validation split or one alone, got {', '.join(splits)}; "
        f"{data}:SPLIT names one"
    )


def _image_column(features: dict[str, object], image: type, data: str) -> str:
    columns = [name for name, feature in features.items() if isinstance(feature, image)]
    if "image" in columns:
        return "image"
    if len(columns) == 1:
        return columns[0]
    found = ", ".join(columns) or "none"
    raise ValueError(f"open_dataset: expected {data} to have one image column, or one named image, got {found}")
