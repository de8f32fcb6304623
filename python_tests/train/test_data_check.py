"""`vqdm data check`: broken and odd files of every kind of data set."""

import numpy as np
from PIL import Image

from image_files import broken, folder_of, picture, write
from vqdm_train.data import Finding, check_data


def test_check_finds_broken_and_odd_files(tmp_path):
    reasons = broken(tmp_path / "broken")
    folder_of(tmp_path / "good", 2, size=(80, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = tmp_path / "odd"
    odd.mkdir()
    Image.fromarray(picture(80, 90)).save(odd / "turned.jpg", exif=exif)
    Image.fromarray(picture(80, 90)).convert("CMYK").save(odd / "cmyk.jpg")
    Image.fromarray(picture(80, 90)).save(odd / "really_png.jpg", format="PNG")
    Image.fromarray(picture(80, 90)).save(odd / "a.gif")
    Image.fromarray(np.zeros((80, 80), dtype=np.uint16)).save(odd / "deep.png")
    write(odd / "long.png", picture(64, 400))
    write(odd / "tiny.png", picture(20, 20))
    (odd / "notes.txt").write_text("words")
    findings = check_data(str(tmp_path))
    errors = {finding.path for finding in findings if finding.severity == "error"}
    assert errors == {f"broken/{name}" for name in [*reasons, "hollow.png"]}
    notes = {finding.path: finding.message for finding in findings if finding.severity == "note"}
    assert notes == {
        "odd/a.gif": "not read: extension .gif",
        "odd/cmyk.jpg": "mode CMYK, converted",
        "odd/deep.png": "16 bits",
        "odd/long.png": "long: 400 x 64 pixels",
        "odd/really_png.jpg": "named .jpg, but of format PNG",
        "odd/tiny.png": "small: 20 x 20 pixels",
        "odd/turned.jpg": "turned upright by its EXIF orientation",
    }


def test_check_of_sound_data_finds_nothing(tmp_path):
    folder_of(tmp_path, 2, size=(80, 80))
    assert check_data(str(tmp_path)) == check_data("builtin:photos") == check_data("builtin:digits") == []


def test_check_of_an_empty_folder_says_so(tmp_path):
    (finding,) = check_data(str(tmp_path))
    assert isinstance(finding, Finding)
    assert finding.severity == "error"
    assert finding.message.startswith("no images")


def test_check_of_a_list(tmp_path):
    write(tmp_path / "good.png", picture(80, 80))
    write(tmp_path / "tiny.png", picture(20, 20))
    (tmp_path / "empty.jpg").write_bytes(b"")
    np.save(tmp_path / "wide.npy", np.zeros((80, 80, 9), dtype=np.uint16))
    (tmp_path / "list.txt").write_text("good.png\nmissing.png\ntiny.png\nempty.jpg\nwide.npy\n")
    findings = check_data(str(tmp_path / "list.txt"))
    assert [(finding.path, finding.severity) for finding in findings] == [
        *(("missing.png", "error"), ("tiny.png", "note"), ("empty.jpg", "error"))
    ]
    assert "No such file" in findings[0].message
    (tmp_path / "none.txt").write_text("\n")
    assert check_data(str(tmp_path / "none.txt")) == [Finding(".", "error", "an empty list")]
