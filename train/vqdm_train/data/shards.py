"""Images in tar shards, read where they lie: nothing is ever extracted, and no member can write, read or run anything.

    shards/train-{0000..0099}.tar      numbers in braces, zeros in front kept
    shards/*.tar                       a pattern of the shell
    shards/train.tar                   one shard

Opening them reads the headers of all members once, so the number of images is exact and each is one seek away. Images
are taken by their extension, and JSON beside them: `a/0001.json` belongs to `a/0001.jpg` of the same shard, and is
served as text. Members of other extensions are passed over. Left out, and named by `left_out`: links, devices and other
members that are no regular file, sparse ones (some bytes on the disk could claim any size), absolute names and names
with `..` in them. Refused: a compressed tar (nothing in it can be sought), a truncated or damaged one, a URL, a command
(`pipe:`).
"""

import glob
import io
import itertools
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from vqdm_train.data.decode import ARRAYS, MAX_BYTES, PICTURES, describe
from vqdm_train.data.encoded import image_extensions, suffix

__all__ = ["Shards", "expand", "is_shards"]

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4", ".tar.lzma")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_TEXT = 2**20  # bytes of one JSON member
_TAKEN = frozenset((*PICTURES, *ARRAYS, ".json"))


def is_shards(data: str) -> bool:
    """Whether a data set's name means tar shards: by its extension, compressed ones included."""
    return data.endswith((".tar", *_COMPRESSED))


def expand(data: str) -> list[Path]:
    """The shards that a name or a pattern means, in order; ValueError where there is none, or where one is missing."""
    if data.endswith(_COMPRESSED):
        raise ValueError(
            "open_dataset: expected uncompressed tar shards, since nothing in a compressed one can be sought, "
            f"got {data}"
        )
    paths: list[Path] = []
    for name in _expand_ranges(data):
        found = sorted(map(Path, glob.glob(name))) if glob.has_magic(name) else [Path(name)]
        if not found:
            raise ValueError(f"open_dataset: expected tar shards that match {name}, got none")
        paths.extend(found)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        named = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise ValueError(
            f"open_dataset: expected the {len(paths)} tar shards of {data}, "
            f"got {len(missing)} that are missing: {named}"
        )
    return paths


def _expand_ranges(pattern: str) -> Iterator[str]:
    literal = _RANGE.split(pattern)  # text, first, last, text, first, last, ..., text
    if "{" in "".join(literal[::3]):
        raise ValueError(f"open_dataset: expected braces to hold numbers as in {{0000..0099}}, got {pattern}")
    ranges = []
    for first, last in zip(literal[1::3], literal[2::3], strict=True):
        if int(first) > int(last) or int(last) - int(first) >= 10**6:
            raise ValueError(f"open_dataset: expected a rising range of at most 10^6 shards in braces, got {pattern}")
        width = len(first)
        ranges.append([f"{number:0{width}d}" for number in range(int(first), int(last) + 1)])
    for numbers in itertools.product(*ranges):
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(literal[::3], numbers, fillvalue="")))


class Member(NamedTuple):
    name: str
    offset: int  # of its bytes in the shard
    size: int


_NO_TEXT = Member("", 0, -1)


class Shards:
    """The encoded images of tar shards. Raises ValueError for shards without images and for one that is damaged."""

    shared = True

    def __init__(self, data: str, in_channels: int) -> None:
        self.paths = expand(data)
        self._root = os.path.commonpath([path.parent for path in self.paths])
        self.left_out: list[tuple[str, str]] = []  # (name, reason)
        names: list[str] = []
        places = array("q")  # compact, since a data set may have 10^7 images
        for shard, path in enumerate(self.paths):
            members = list(self._scan(path))
            texts = {_key(member.name): member for member in members if suffix(member.name) == ".json"}
            for member in members:
                if suffix(member.name) != ".json":
                    text = texts.get(_key(member.name), _NO_TEXT)
                    names.append(member.name)
                    places.extend((shard, member.offset, member.size, text.offset, text.size))
        extensions = image_extensions(names, in_channels)
        taken = [index for index, name in enumerate(names) if suffix(name) in extensions]
        if not taken:
            raise ValueError(
                f"open_dataset: expected tar shards with images ({' '.join(PICTURES + ARRAYS)}), got none in {data}"
            )
        self._names = [names[index] for index in taken]
        self._places = np.array(places).reshape(-1, 5)[taken]
        left_out = f", {len(self.left_out)} members left out" if self.left_out else ""
        self.description = (
            f"{data}: {len(self)} images in {len(self.paths)} tar shards{left_out} "
            "(shards serve training and evaluation)"
        )

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._full_name(self.paths[self._places[index, 0]], self._names[index])

    def _full_name(self, path: Path, member: str) -> str:
        return f"{path.relative_to(self._root).as_posix()}/{member}"

    def open(self, index: int) -> BinaryIO:
        shard, offset, size, _, _ = map(int, self._places[index])
        if size > MAX_BYTES:
            raise OSError(f"{size} bytes, more than {MAX_BYTES // 10**6} MB")
        return io.BytesIO(self._read(shard, offset, size))

    def text(self, index: int) -> str | None:
        """The JSON beside image `index` as text, or None; ValueError for one that is no UTF-8 or over 1 MiB."""
        shard, _, _, offset, size = map(int, self._places[index])
        if size == _NO_TEXT.size:
            return None
        if size > _MAX_TEXT:
            raise ValueError(f"Shards: expected at most {_MAX_TEXT} bytes of JSON, got {size} for {self.name(index)}")
        return self._read(shard, offset, size).decode("utf-8")

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        descriptor = os.open(self.paths[shard], os.O_RDONLY)  # not kept: there may be more shards than open files
        try:
            content = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
        if len(content) < size:
            raise OSError("the shard has become shorter since its headers were read")
        return content

    def _scan(self, path: Path) -> Iterator[Member]:
        """The image and JSON members of one shard, by its headers."""
        try:
            with tarfile.open(path, "r:") as archive:
                end = 0
                for member in archive:
                    if member.offset < end:  # a size that points back would have the reader go round for ever
                        raise tarfile.ReadError("members that overlap")
                    end = member.offset_data
                    if suffix(member.name) not in _TAKEN and member.isreg():
                        continue
                    reason = _why_left_out(member)
                    if reason is None:
                        yield Member(member.name, member.offset_data, member.size)
                    elif reason:
                        self.left_out.append((self._full_name(path, member.name), reason))
                _check_end(path, archive.offset)
        except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            # The last two: extended headers of a size or in a number that only an attack has.
            raise ValueError(
                f"open_dataset: expected a whole, uncompressed tar file, got {path}: {describe(error)}"
            ) from error


def _why_left_out(member: tarfile.TarInfo) -> str | None:
    """None for a member to take; "" for one that needs no word: folders, and hidden files as in a folder."""
    parts = member.name.split("/")  # an absolute name begins with an empty part
    if not parts[0] or ".." in parts or "\\" in member.name or "\0" in member.name:
        return "an unsafe name"
    if member.isdir():
        return ""
    if member.issparse():
        return "a sparse file"
    if not member.isreg():
        return "a link" if member.issym() or member.islnk() else "a device or another member that is no file"
    return "" if parts[-1].startswith(".") else None


def _check_end(path: Path, offset: int) -> None:
    # The reader of the standard library takes a damaged header for the end, and a hole or another archive behind the
    # end for nothing: images would be lost without a word.
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(512)
        if len(block) < 512 or any(block):
            kind = "damaged" if block else "truncated"
            raise tarfile.ReadError(f"{kind}: no header and no end mark at byte {offset}")
        while chunk := file.read(2**20):
            if chunk.count(0) < len(chunk):
                raise tarfile.ReadError(f"more than zeros behind the end mark at byte {offset}")


def _key(name: str) -> str:
    """What an image and its JSON share: the path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]
