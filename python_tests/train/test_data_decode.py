"""Every kind of odd file is read, and every kind of broken one refused by name and reason."""

import numpy as np
import pytest
from PIL import Image

from image_files import broken, picture, png_header, rng, write
from vqdm_train.data import CorruptImageError, TrainStream, check_data, open_dataset, read_image
from vqdm_train.data.decode import open_image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    pixels = picture(10, 14)
    # What a camera stores so that a viewer that obeys the tag shows `pixels`.
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(read_image(path), pixels)


def test_jpeg_exif_orientation_turns_the_picture(tmp_path):
    pixels = picture(10, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif, quality=100, subsampling=0)
    got = read_image(path)
    assert got.shape == (10, 24, 3)
    assert np.abs(got.astype(int) - pixels).mean() < 2


def test_cmyk_becomes_rgb(tmp_path):
    pixels = picture()
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).convert("CMYK").save(path)
    assert np.array_equal(read_image(path), pixels)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(read_image(path, 1)[:, :, 0], grey)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    pixels = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).convert("CMYK").save(path, quality=100)
    assert np.abs(read_image(path).astype(int) - pixels).max() <= 3


def test_palette_and_one_bit_become_rgb(tmp_path):
    palette = Image.fromarray(picture()).quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(picture(channels=1)[:, :, 0]).convert("1")
    bits.save(tmp_path / "b.png")
    assert set(np.unique(read_image(tmp_path / "b.png"))) == {0, 255}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
def test_sixteen_bit_grey_is_kept(tmp_path, suffix):
    wide = np.array([[0, 128, 129, 257], [385, 386, 65406, 65535]], dtype=np.uint16)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(wide).save(path)
    for channels in (1, 3, 4):
        pixels = read_image(path, channels)
        assert (pixels.shape, pixels.dtype) == ((2, 4, channels), np.uint16)
        assert all(np.array_equal(pixels[:, :, c], wide) for c in range(min(channels, 3)))
    assert (pixels[:, :, 3] == 65535).all()


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png")
    assert (got[:2] == (10, 20, 30)).all()
    assert (got[2:] == 255).all()
    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / "t.png", transparency=(0, 0, 0))
    assert (read_image(tmp_path / "t.png") == 255).all()


def test_alpha_is_kept_where_four_channels_are_asked_for(tmp_path):
    rgba = rng(2).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 4), rgba)
    path = write(tmp_path / "opaque.png", picture())
    assert np.array_equal(read_image(path, 4)[:, :, :3], picture())
    assert (read_image(path, 4)[:, :, 3] == 255).all()


def test_first_picture_of_several_counts(tmp_path):
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(tmp_path / "a.tif"), picture(seed=0))


def test_broken_files_name_themselves_and_the_reason(tmp_path):
    for name, reason in broken(tmp_path).items():
        with pytest.raises(CorruptImageError) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)
        assert reason in error.value.reason
        assert error.value.reason


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "ppm"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged tags
def test_damaged_bytes_give_pixels_or_a_named_refusal(tmp_path, suffix):
    """Cut anywhere, or bytes changed in the header or anywhere: never another exception, here or in the check."""
    generator = rng(7)
    path = write(tmp_path / f"a.{suffix}", picture())
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    reasons = []
    for kind in ("cut", "header", "anywhere") * 25:
        damaged = whole.copy()
        if kind == "cut":
            damaged = damaged[: generator.integers(len(damaged))]
        else:
            places = generator.integers(len(damaged) if kind == "anywhere" else 100, size=5)
            damaged[places] = generator.integers(256, size=5)
        path.write_bytes(damaged.tobytes())
        try:
            pixels = read_image(path)
        except CorruptImageError as error:
            reasons.append(error.reason)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
        check_data(str(tmp_path))
    assert len(reasons) >= 15
    assert all(reasons)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = png_header(tmp_path / "bomb.png", 8_000, 8_001)
    with pytest.raises(CorruptImageError, match="more than 64 Mpixel"):
        read_image(path)
    limit = png_header(tmp_path / "limit.png", 8_000, 8_000)
    with limit.open("rb") as file, open_image(file, limit) as image:
        assert image.size == (8_000, 8_000)


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 13)])
def test_arrays_are_read_as_they_are(tmp_path, shape, dtype):
    pixels = rng(4).integers(0, 256, shape).astype(dtype)
    channels = 1 if len(shape) == 2 else shape[2]
    for order in ("C", "F"):
        np.save(tmp_path / "a.npy", np.asarray(pixels, order=order))
        got = read_image(tmp_path / "a.npy", channels)
        assert np.array_equal(got, pixels.reshape(5, 7, channels))
        assert got.dtype == np.dtype(dtype).newbyteorder("=")


def test_arrays_train_and_are_evaluated(tmp_path):
    """5 channels of 16 bits, from the file to the model's range."""
    pixels = rng(5).integers(0, 65536, (12, 12, 5)).astype(np.uint16)
    np.save(tmp_path / "a.npy", pixels)
    image = open_dataset(str(tmp_path), split="eval", size=12, in_channels=5)[0]
    expected = pixels.astype(np.float64).transpose(2, 0, 1) / 32767.5 - 1
    assert np.abs(image.numpy() - expected).max() < 1e-6
    train = open_dataset(str(tmp_path), split="train", size=8, in_channels=5)
    assert TrainStream(train, 4, 0).batch(0).shape == (4, 5, 8, 8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((2, 2, 3), dtype=np.float32), "an array of float32, where uint8 or uint16"),
        (np.zeros((2, 2, 3), dtype=np.int16), "an array of int16"),
        (np.zeros((2, 2), dtype=object), "an array of object"),
        (np.zeros((2, 2, 4), dtype=np.uint8), "an array of 4 channels, where 3 were expected"),
        (np.zeros((2, 2), dtype=np.uint8), "an array of 1 channels, where 3 were expected"),
        (np.zeros((2, 2, 3, 1), dtype=np.uint8), r"an array of shape \[2, 2, 3, 1\]"),
        (np.zeros((0, 2, 3), dtype=np.uint8), r"an array of shape \[0, 2, 3\]"),
        (b"", "the file is empty"),
        (b"not an array", "magic string is not correct"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "version 9.0"),
    ],
)
def test_other_arrays_are_refused(tmp_path, content, reason):
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(CorruptImageError, match=reason):
        read_image(path)


def test_array_sizes_are_checked_by_the_header(tmp_path):
    """A header of 10^12 pixels before 9 bytes, one whose pixels are missing, and one of a negative size."""
    for shape, reason in (
        ((10**6, 10**6, 3), "more than 64 Mpixel or 256 MB"),
        ((100, 100, 3), "truncated"),
        ((-1, 1, 3), "an array of shape"),  # would take however many pixels there are
    ):
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(bytes(9))
        with pytest.raises(CorruptImageError, match=reason):
            read_image(tmp_path / "a.npy")


def test_pictures_have_no_other_channels(tmp_path):
    with pytest.raises(CorruptImageError, match="where 5 channels were asked for"):
        read_image(write(tmp_path / "a.png", picture()), 5)


def test_decoded_bytes_are_limited_too(tmp_path):
    """63 Mpixel of 16-bit grey pass as one channel, and not as three."""
    path = png_header(tmp_path / "a.png", 7_900, 7_900, bits=16, colour=0)
    with pytest.raises(CorruptImageError, match="7900 x 7900 pixels, more than 256 MB"):
        read_image(path, 3)
