"""Tar shards: read where they lie, exactly counted, and never able to write, read or run anything."""

import io
import struct
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from image_files import folder_of, picture, rng
from vqdm_train.data import CorruptImageError, Finding, TrainStream, check_data, open_dataset
from vqdm_train.data.shards import Shards, expand


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def shard(path, members, *, format=tarfile.PAX_FORMAT):
    """A tar file of (name, content) and ready-made TarInfo members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_hold_what_a_folder_holds(tmp_path, format):
    """The same pictures in a folder and in shards: the same images; long names and 3 shards included."""
    folder_of(tmp_path / "images", 7)
    files = sorted((tmp_path / "images").iterdir())
    long = "a-folder-with-quite-a-long-name/" * 4
    for number, part in enumerate((files[:3], files[3:5], files[5:])):
        shard(tmp_path / f"{number:02d}.tar", [(long + file.name, file.read_bytes()) for file in part], format=format)
    folder = open_dataset(str(tmp_path / "images"), split="eval", size=16)
    for name in ("{00..02}.tar", "*.tar", "0[0-2].tar"):
        shards = open_dataset(str(tmp_path / name), split="eval", size=16)
        assert len(shards) == 7
        assert "7 images in 3 tar shards" in shards.description
        assert all(torch.equal(shards[i], folder[i]) for i in (6, 0, 3, 5, 1, 2, 4))
    assert shards.name(3) == f"01.tar/{long}0003.png"


def test_images_and_json_are_taken_and_the_rest_passed_over(tmp_path):
    path = shard(
        tmp_path / "a.tar",
        [
            *(("a/1.jpg", png(picture())), ("a/1.json", b'{"label": "caf\xc3\xa9"}'), ("a/1.cls", b"7")),
            *(
                ("a/2.seg.png", png(picture())),
                ("a/2.json", b"[]"),
                ("b/2.png", png(picture())),
                ("evil.pkl", b"cos\n"),
            ),
            *(("evil.pyd", b"MZ"), ("a/.hidden.png", b"x"), special("a", tarfile.DIRTYPE), ("a/1.npy", b"features")),
        ],
    )
    shards = Shards(str(path), 3)
    assert [shards.name(i) for i in range(len(shards))] == ["a.tar/a/1.jpg", "a.tar/a/2.seg.png", "a.tar/b/2.png"]
    assert [shards.text(i) for i in range(3)] == ['{"label": "café"}', "[]", None]
    assert shards.left_out == []


def test_arrays_of_shards(tmp_path):
    buffer = io.BytesIO()
    pixels = rng(1).integers(0, 65536, (16, 16, 6)).astype(np.uint16)
    np.save(buffer, pixels)
    path = shard(tmp_path / "a.tar", [("a.npy", buffer.getvalue()), ("a.png", png(picture()))])
    image = open_dataset(str(path), split="eval", size=16, in_channels=6)[0]
    assert np.abs(((image.numpy() + 1) * 32767.5).transpose(1, 2, 0) - pixels).max() < 0.01


def test_training_from_shards_is_the_same_for_ranks(tmp_path):
    for number in range(2):
        shard(tmp_path / f"{number}.tar", [(f"{i}.png", png(picture(20, 20, seed=9 * number + i))) for i in range(5)])
    images = open_dataset(str(tmp_path / "{0..1}.tar"), split="train", size=16)
    whole = TrainStream(images, 4, 0)
    parts = [TrainStream(images, 4, 0, rank=rank, world_size=4).batch(2) for rank in range(4)]
    assert torch.equal(torch.cat(parts), whole.batch(2))
    names = [name for step in range(5) for name in whole.names(step)]
    assert sorted(names[:10]) == sorted(names[10:]) == [f"{n}.tar/{i}.png" for n in range(2) for i in range(5)]


def test_shards_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        shard(tmp_path / folder / "0.tar", [("1.png", png(picture(20, 20)))])
    images = open_dataset(str(tmp_path / "*/0.tar"), split="eval", size=16)
    assert [images.name(i) for i in range(len(images))] == ["a/0.tar/1.png", "b/0.tar/1.png"]


# --- nasty ------------------------------------------------------------------------------------------------------------


def hostile(path):
    """Every way in which a member can try to be more than bytes at a place, beside one honest picture."""
    secret = path.parent / "secret.png"
    secret.parent.mkdir()
    secret.write_bytes(png(picture()))
    return shard(
        path,
        [
            ("good.png", png(picture(80, 80))),
            ("../up.png", png(picture())),
            ("a/../../up.png", png(picture())),
            ("/absolute.png", png(picture())),
            ("back\\slash.png", png(picture())),
            special("soft.png", tarfile.SYMTYPE, str(secret)),
            special("hard.png", tarfile.LNKTYPE, "good.png"),
            special("device.png", tarfile.CHRTYPE),
            special("block.png", tarfile.BLKTYPE),
            special("pipe.png", tarfile.FIFOTYPE),
            special("link.json", tarfile.SYMTYPE, str(secret)),
        ],
    )


def test_hostile_members_are_left_out_and_named_and_nothing_is_touched(tmp_path):
    path = hostile(tmp_path / "inside/evil.tar")
    before = sorted(tmp_path.rglob("*"))
    events = []
    watching = True

    def audit(event, arguments):
        if watching and event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.symlink",
            "os.link",
            "socket.connect",
        ):
            events.append(event)
        if watching and event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(str(tmp_path)):
            events.extend([event] * (arguments[0] != str(path) or bool(arguments[2] & 3)))

    sys.addaudithook(audit)  # for the life of the process, hence `watching`
    shards = Shards(str(path), 3)
    images = open_dataset(str(path), split="eval", size=16)
    assert [images.name(i) for i in range(len(images))] == ["evil.tar/good.png"]
    assert images[0].shape == (3, 16, 16)
    watching = False
    assert events == []
    assert sorted(tmp_path.rglob("*")) == before
    assert dict(shards.left_out) == {
        **{f"evil.tar/{name}": "an unsafe name" for name in ("../up.png", "a/../../up.png", "/absolute.png")},
        "evil.tar/back\\slash.png": "an unsafe name",
        **{f"evil.tar/{name}": "a link" for name in ("soft.png", "hard.png", "link.json")},
        **{
            f"evil.tar/{name}": "a device or another member that is no file"
            for name in ("device.png", "block.png", "pipe.png")
        },
    }
    assert "1 images in 1 tar shards, 10 members left out" in shards.description
    notes = [finding.path for finding in check_data(str(path))]
    assert notes == [name for name, _ in shards.left_out]


def test_a_sparse_member_that_claims_ten_gigabytes_is_left_out(tmp_path):
    header = bytearray(special("sparse.png", b"S").tobuf(tarfile.GNU_FORMAT))
    header[386:398] = header[398:410] = b"%011o\0" % 0  # one empty piece
    header[483:495] = b"\x80" + (10 * 2**30).to_bytes(11, "big")  # the real size
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    whole = shard(tmp_path / "a.tar", [("good.png", png(picture()))]).read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(header) + whole)
    shards = Shards(str(tmp_path / "a.tar"), 3)
    assert shards.left_out == [("a.tar/sparse.png", "a sparse file")]
    assert len(shards) == 1


def test_truncated_and_damaged_shards_are_refused_by_name(tmp_path):
    """Cut anywhere, a shard is refused: a header too few would be images lost without a word."""
    path = shard(tmp_path / "a.tar", [(f"{i}.png", png(picture(seed=i))) for i in range(3)])
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive]
        end = archive.offset
    cuts = [0, 1, 511, 512, 513, *starts[1:], starts[1] + 100, starts[2] + 700, end - 1, end]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"expected a whole, uncompressed tar file, got .*a\.tar: "):
            Shards(str(path), 3)
    damaged = bytearray(whole)
    damaged[starts[2] + 20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged: no header and no end mark at byte"):
        Shards(str(path), 3)


def test_random_bytes_never_end_in_another_error(tmp_path):
    generator = rng(3)
    whole = shard(tmp_path / "a.tar", [(f"{i}.png", png(picture(seed=i))) for i in range(3)]).read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(len(whole) // 512, size=2):  # in headers, where the fields are
            start = int(place) * 512 + int(generator.integers(512))
            damaged[start] = int(generator.integers(256))
        (tmp_path / "a.tar").write_bytes(damaged)
        try:
            shards = Shards(str(tmp_path / "a.tar"), 3)
        except ValueError:
            refused += 1
        else:
            assert len(shards) <= 3
    assert refused > 10


def test_a_member_that_is_no_picture_is_named_with_its_shard(tmp_path):
    path = shard(tmp_path / "a.tar", [("1.png", png(picture(80, 80))), ("2.png", b"<html>"), ("2.json", b"{")])
    images = open_dataset(str(path), split="eval", size=16)
    with pytest.raises(CorruptImageError, match=r"got a\.tar/2\.png: not a picture"):
        images[1]
    error, note = check_data(str(path))
    assert error == Finding("a.tar/2.png", "error", "not a picture of a known format")
    assert (note.path, note.severity) == ("a.tar/2.png", "note")
    assert note.message.startswith("the JSON beside it cannot be read")


def test_a_shard_that_shrinks_under_a_run_is_a_corrupt_image(tmp_path):
    path = shard(tmp_path / "a.tar", [("1.png", png(picture(80, 80)))])
    images = open_dataset(str(path), split="eval", size=16)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(CorruptImageError, match="the shard has become shorter"):
        images[0]


def test_a_picture_file_over_the_limit_is_not_read(tmp_path):
    info = tarfile.TarInfo("large.png")
    info.size = 300_000_000
    with (tmp_path / "a.tar").open("wb") as file:  # a file with a hole: no 300 MB are written
        file.write(info.tobuf())
        file.seek(-(-info.size // 512) * 512, 1)
        file.write(bytes(1024))
    images = open_dataset(str(tmp_path / "a.tar"), split="eval", size=16)
    with pytest.raises(CorruptImageError, match="300000000 bytes, more than 256 MB"):
        images[0]


# --- bad --------------------------------------------------------------------------------------------------------------


def test_patterns_expand_in_order(tmp_path):
    for name in ("a-08-1", "a-08-2", "a-09-1", "a-09-2", "a-10-1", "a-10-2"):
        shard(tmp_path / f"{name}.tar", [])
    paths = expand(str(tmp_path / "a-{08..10}-{1..2}.tar"))
    assert [path.stem for path in paths] == ["a-08-1", "a-08-2", "a-09-1", "a-09-2", "a-10-1", "a-10-2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{0..2}.tar", r"expected the 3 tar shards of .*, got 2 that are missing: .*/0\.tar, .*/2\.tar"),
        ("x*.tar", r"expected tar shards that match .*/x\*\.tar, got none"),
        ("x{0..1}*.tar", r"expected tar shards that match .*/x0\*\.tar, got none"),
        ("{2..1}.tar", "expected a rising range"),
        ("{0..9999999}.tar", "at most 10.6 shards"),
        ("{a,b}.tar", "expected braces to hold numbers"),
        ("nowhere.tar", "got 1 that are missing"),
        ("1.tar.gz", "expected uncompressed tar shards"),
        ("1.tgz", "expected uncompressed tar shards"),
        ("1.tar", r"expected tar shards with images .*, got none"),
        ("zipped.tar", "expected a whole, uncompressed tar file"),
    ],
)
def test_names_that_mean_no_shards_are_refused(tmp_path, name, message):
    shard(tmp_path / "1.tar", [("words.txt", b"no image")])
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as archive:
        archive.addfile(special("a", tarfile.DIRTYPE))
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path / name), split="train", size=16)


def test_members_that_point_back_are_refused(tmp_path):
    """A negative size, which sends a naive reader round for ever."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + struct.pack(">q", -512).rjust(11, b"\xff")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ValueError, match="expected a whole, uncompressed tar file"):
        Shards(str(tmp_path / "a.tar"), 3)


@pytest.mark.parametrize("between", [b"", bytes(10240)])
def test_images_behind_an_end_mark_are_not_lost_without_a_word(tmp_path, between):
    """Archives put together by `cat`, and a shard with a hole of zeros."""
    first, second = (shard(tmp_path / name, [("1.png", png(picture()))]).read_bytes() for name in ("a.tar", "b.tar"))
    (tmp_path / "a.tar").write_bytes(first + between + second)
    with pytest.raises(ValueError, match=r"got .*a\.tar: more than zeros behind the end mark"):
        Shards(str(tmp_path / "a.tar"), 3)


def extended(kind, content, size=None):
    """An extended header as it stands in a tar file; `size` is what it claims."""
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = kind
    header[124:136] = b"\x80" + (len(content) if size is None else size).to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content.ljust(512, b"\0")


@pytest.mark.parametrize(
    "headers",
    [
        extended(tarfile.XHDTYPE, b"", size=2**60),  # memory
        extended(tarfile.GNUTYPE_LONGNAME, b"", size=2**60),
        extended(tarfile.XHDTYPE, b"12 path=a.b\n") * 3000,  # each is read by a call from within that of the one before
    ],
)
def test_extended_headers_of_an_attack_are_refused(tmp_path, headers):
    whole = shard(tmp_path / "a.tar", [("1.png", png(picture()))]).read_bytes()
    (tmp_path / "a.tar").write_bytes(headers + whole)
    with pytest.raises(ValueError, match="expected a whole, uncompressed tar file"):
        Shards(str(tmp_path / "a.tar"), 3)
