"""vqdm_train.data: splits, crops, purity in (seed, step), and every kind of odd or broken file."""

import gc
import itertools
import struct
import threading
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as skimage_data
from sklearn.datasets import load_digits

from vqdm_train.data import (
    CorruptDataError,
    CorruptImageError,
    Finding,
    TrainStream,
    check_data,
    open_dataset,
    prefetch,
    read_image,
)
from vqdm_train.data.builtin import EVAL_PHOTOS, TRAIN_PHOTOS
from vqdm_train.data.crops import grid_positions, to_tensor
from vqdm_train.data.decode import open_image
from vqdm_train.data.folder import list_files


def rng(*seed):
    return np.random.default_rng(seed or 0)


def picture(height=40, width=56, channels=3, *, seed=0):
    """Smooth random colours, so that lossy formats stay close: uint8 [H, W, C]."""
    low = rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    image = Image.fromarray(low[:, :, 0] if channels == 1 else low).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[:, :, None] if channels == 1 else pixels


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(path, **options)
    return path


def png_header(path, width, height):
    """A PNG that claims a size and holds almost nothing: what a decompression bomb looks like before it is decoded."""

    def chunk(kind, payload):
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )
    return path


def folder_of(root, count, *, size=(20, 24)):
    for i in range(count):
        write(root / f"{i:04d}.png", picture(size[0], size[1], seed=i))
    return root


# --- values: the built-in photographs ---------------------------------------------------------------------------------


def test_photos_train_on_everything_but_the_held_out_ones():
    images = open_dataset("builtin:photos", split="train", size=32)
    names = [images.name(i) for i in range(len(images))]
    assert names == [name.rsplit(".")[0] for name in TRAIN_PHOTOS]
    assert not {"chelsea", "coffee"} & set(names)
    assert {"motorcycle_left", "motorcycle_right"} <= set(names)
    assert set(EVAL_PHOTOS) == {"chelsea.png", "coffee.png"}


@pytest.mark.parametrize(("index", "reference"), [(0, "astronaut"), (2, "camera")])
def test_photos_are_the_pixels_that_skimage_reads(index, reference):
    expected = getattr(skimage_data, reference)()
    if expected.ndim == 2:
        expected = np.repeat(expected[:, :, None], 3, axis=2)
    images = open_dataset("builtin:photos", split="train", size=32)
    assert np.array_equal(images.source.load(index), expected)


def test_eval_photos_are_all_grid_crops_at_four_shifts():
    size = 64
    images = open_dataset("builtin:photos", split="eval", size=size)
    expected, names = [], []
    for name, photo in (("chelsea", skimage_data.chelsea()), ("coffee", skimage_data.coffee())):
        for shift in ((0, 0), (0, 32), (32, 0), (32, 32)):
            for top in range(shift[0], photo.shape[0] - size + 1, size):
                for left in range(shift[1], photo.shape[1] - size + 1, size):
                    expected.append(photo[top : top + size, left : left + size])
                    names.append(f"{name}-{top}-{left}")
    assert len(images) == len(expected) == 291
    assert [images.name(i) for i in range(len(images))] == names
    got = torch.stack([images[i] for i in range(len(images))])
    assert got.shape == (291, 3, 64, 64)
    pixels = ((got + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels, np.stack(expected))


def test_eval_crops_of_one_shift_do_not_overlap():
    positions = grid_positions(300, 451, 64, (32, 32))
    covered = Counter(
        (y, x) for top, left in positions for y in range(top, top + 64, 16) for x in range(left, left + 64, 16)
    )
    assert len(positions) == 4 * 6
    assert set(covered.values()) == {1}


def test_eval_photos_smaller_than_the_crop_are_enlarged():
    images = open_dataset("builtin:photos", split="eval", size=448)
    # chelsea 300 x 451 becomes 448 x 673, coffee 400 x 600 becomes 448 x 672; only shift 0 and (0, 224) fit.
    assert [images.name(i) for i in range(len(images))] == [
        "chelsea-0-0",
        "chelsea-0-224",
        "coffee-0-0",
        "coffee-0-224",
    ]
    assert images[0].shape == (3, 448, 448)


def test_photo_shares_grow_with_pixels_up_to_a_bound():
    images = open_dataset("builtin:photos", split="train", size=32)
    generator = rng(3)
    drawn = Counter(images.name(images.sample(generator)) for _ in range(20000))
    pixels = {images.name(i): images.source.load(i)[:, :, 0].size for i in range(len(images))}
    weights = {name: min(count, 512 * 512) for name, count in pixels.items()}
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        five_sigma = 5 * np.sqrt(share * (1 - share) / 20000)
        assert abs(drawn[name] / 20000 - share) < five_sigma


# --- values: digits ---------------------------------------------------------------------------------------------------


def test_digits_hold_out_the_last_297():
    train = open_dataset("builtin:digits", split="train", size=16, in_channels=1)
    held_out = open_dataset("builtin:digits", split="eval", size=8, in_channels=1)
    assert (len(train), len(held_out)) == (1500, 297)
    assert held_out.name(0) == "digit-1500"
    assert held_out.name(296) == "digit-1796"
    expected = np.rint(load_digits().images[1500:] * 255 / 16)
    got = torch.stack([held_out[i] for i in range(297)])
    assert np.array_equal(((got[:, 0] + 1) * 127.5).round().numpy(), expected)


def test_digits_are_enlarged_whole_and_never_mirrored():
    images = open_dataset("builtin:digits", split="train", size=32)
    crops = [images.crop(7, rng(seed)) for seed in range(8)]
    assert crops[0].shape == (3, 32, 32)
    assert all(torch.equal(crop, crops[0]) for crop in crops)
    assert torch.equal(crops[0][0], crops[0][2])


# --- values: training crops -------------------------------------------------------------------------------------------


def test_crops_are_windows_of_the_photograph_mirrored_half_of_the_time():
    images = open_dataset("builtin:photos", split="train", size=48, min_scale=1.0)
    photo = images.source.load(0)
    windows = np.lib.stride_tricks.sliding_window_view(photo, (48, 48), axis=(0, 1))  # [h, w, 3, 48, 48]
    corner: dict[bytes, list[tuple[int, int]]] = {}
    for y, x in itertools.product(range(windows.shape[0]), range(windows.shape[1])):
        corner.setdefault(photo[y, x : x + 48].tobytes(), []).append((y, x))
    mirrored = 0
    for seed in range(200):
        crop = images.crop_pixels(0, rng(seed))
        for flip, candidate in ((0, crop), (1, crop[:, ::-1])):
            places = corner.get(np.ascontiguousarray(candidate[0]).tobytes(), [])
            if any(np.array_equal(photo[y : y + 48, x : x + 48], candidate) for y, x in places):
                mirrored += flip
                break
        else:
            pytest.fail("the crop is no window of the photograph")
    assert 65 <= mirrored <= 135  # five sigma of 200 fair coins


def test_mirror_false_leaves_left_and_right():
    """With one generator: half of the crops are those of mirror=True, the others mirrored back."""
    plain = open_dataset("builtin:photos", split="train", size=48, min_scale=1.0, mirror=False)
    mirroring = open_dataset("builtin:photos", split="train", size=48, min_scale=1.0)
    changed = 0
    for seed in range(40):
        crop, other = plain.crop_pixels(0, rng(seed)), mirroring.crop_pixels(0, rng(seed))
        if not np.array_equal(crop, other):
            assert np.array_equal(crop[:, ::-1], other)
            changed += 1
    assert 5 <= changed <= 35


def test_min_scale_shrinks_the_photograph():
    """A shrunken photograph has more change from pixel to pixel; min_scale = 1 leaves crops as they are."""
    brick = TRAIN_PHOTOS.index("brick.png")

    def roughness(min_scale):
        images = open_dataset("builtin:photos", split="train", size=32, min_scale=min_scale)
        crops = torch.stack([images.crop(brick, rng(seed)) for seed in range(40)])
        return crops.diff(dim=-1).abs().mean().item()

    assert roughness(0.25) > 1.2 * roughness(1.0)


def test_the_default_scale_varies_the_window():
    images = open_dataset("builtin:photos", split="train", size=32)
    windows = [images._window(300, rng(seed)) for seed in range(200)]
    assert min(windows) >= 32
    assert max(windows) <= 64
    assert len(set(windows)) > 20


def test_folder_windows_are_fractions_of_the_short_side(tmp_path):
    images = open_dataset(str(folder_of(tmp_path, 3)), split="train", size=16)
    windows = [images._window(1000, rng(seed)) for seed in range(200)]
    assert 800 <= min(windows) < 820
    assert 980 < max(windows) <= 1000


def test_small_images_are_enlarged_to_the_crop(tmp_path):
    write(tmp_path / "a.png", picture(9, 7))
    train = open_dataset(str(tmp_path), split="train", size=32)
    assert train.crop(0, rng()).shape == (3, 32, 32)
    assert open_dataset(str(tmp_path), split="eval", size=32)[0].shape == (3, 32, 32)


def test_pixels_map_to_minus_one_and_one_exactly():
    values = to_tensor([np.array([[[0], [255]]], dtype=np.uint8)])
    assert values.tolist() == [[[[-1.0, 1.0]]]]
    every = to_tensor([np.arange(256, dtype=np.uint8).reshape(16, 16, 1)])
    assert torch.equal(((every + 1) * 127.5).round().to(torch.uint8).flatten(), torch.arange(256, dtype=torch.uint8))


def test_grey_is_one_channel_or_three_equal_ones(tmp_path):
    write(tmp_path / "grey.png", picture(20, 20, 1))
    three = open_dataset(str(tmp_path), split="eval", size=20)[0]
    one = open_dataset(str(tmp_path), split="eval", size=20, in_channels=1)[0]
    assert one.shape == (1, 20, 20)
    assert torch.equal(three, one.expand(3, -1, -1))


# --- values: folders --------------------------------------------------------------------------------------------------


def test_folder_is_nested_sorted_and_takes_known_extensions(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "a/x.webp", "c.bmp", "d.tif", "e.tiff", "f.ppm", "g.jpeg"):
        write(tmp_path / name, picture())
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"junk")
    (tmp_path / ".cache").mkdir()
    write(tmp_path / ".cache/h.png", picture())
    images = open_dataset(str(tmp_path), split="eval", size=16)
    names = [images.name(i) for i in range(len(images))]
    assert names == ["a/x.webp", "b/10.JPG", "b/2.png", "c.bmp", "d.tif", "e.tiff", "f.ppm", "g.jpeg"]
    assert all(images[i].shape == (3, 16, 16) for i in range(len(images)))


def test_linked_folders_are_followed_once_and_loops_end(tmp_path):
    write(tmp_path / "store/1.png", picture())
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "store")
    (root / "again").symlink_to(tmp_path / "store")
    (root / "loop").symlink_to(root)
    assert [path.relative_to(root).as_posix() for path in list_files(root)] == ["again/1.png"]


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_folder_with_train_and_val_is_split_by_them(tmp_path, held_out):
    folder_of(tmp_path / "train", 3)
    folder_of(tmp_path / held_out, 2)
    train = open_dataset(str(tmp_path), split="train", size=16)
    held = open_dataset(str(tmp_path), split="eval", size=16)
    assert (len(train), len(held)) == (3, 2)
    assert "subfolder train" in train.description
    assert f"subfolder {held_out}" in held.description


def test_folder_without_both_serves_both(tmp_path):
    folder_of(tmp_path / "train", 3)
    train = open_dataset(str(tmp_path), split="train", size=16)
    held = open_dataset(str(tmp_path), split="eval", size=16)
    assert (len(train), len(held)) == (3, 3)
    assert "all images serve training and evaluation" in held.description


def test_folder_eval_is_short_side_then_centre(tmp_path):
    pixels = picture(60, 101)
    write(tmp_path / "a.png", pixels)
    got = open_dataset(str(tmp_path), split="eval", size=32)[0]
    resized = np.asarray(Image.fromarray(pixels).resize((int(32 * 101 / 60), 32), Image.Resampling.BICUBIC))
    left = round((resized.shape[1] - 32) / 2)
    assert torch.equal(got, to_tensor([resized[:, left : left + 32]])[0])


# --- properties: purity -----------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step():
    def stream(seed):
        return TrainStream(open_dataset("builtin:photos", split="train", size=24), 8, seed)

    first = stream(5)
    batches = [first.batch(step) for step in range(4)]
    assert batches[0].shape == (8, 3, 24, 24)
    assert batches[0].is_contiguous()
    assert batches[0].dtype == torch.float32
    again = stream(5)
    assert all(torch.equal(again.batch(step), batches[step]) for step in (3, 1, 0, 2))
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(stream(6).batch(0), batches[0])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_see_the_global_batch(world_size):
    images = open_dataset("builtin:digits", split="train", size=8)
    whole = TrainStream(images, 8, 1).batch(3)
    parts = [TrainStream(images, 8, 1, rank=r, world_size=world_size).batch(3) for r in range(world_size)]
    assert torch.equal(torch.cat(parts), whole)


def test_prefetch_gives_the_same_batches_in_order():
    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 4, 0)
    batches = list(prefetch(stream, range(5, 17)))
    assert len(batches) == 12
    assert all(torch.equal(batch, stream.batch(5 + i)) for i, batch in enumerate(batches))


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vqdm-data")]


def test_prefetch_ends_its_threads_when_left_early():
    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 4, 0)
    batches = prefetch(stream, itertools.count())
    next(batches)
    assert data_threads()
    batches.close()
    assert not data_threads()
    batches = prefetch(stream, itertools.count())
    next(batches)
    del batches
    gc.collect()
    assert not data_threads()


def test_prefetch_raises_at_the_batch_that_failed():
    stream = TrainStream(open_dataset("builtin:digits", split="train", size=8), 4, 0)
    batches = prefetch(stream, [0, 1, -1, 3])  # numpy refuses the negative step
    next(batches)
    next(batches)
    with pytest.raises(ValueError, match="non-negative"):
        next(batches)
    assert not data_threads()


# --- nasty: odd files are read ----------------------------------------------------------------------------------------


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
def test_sixteen_bit_grey_is_scaled_and_rounded(tmp_path, suffix):
    wide = np.array([[0, 128, 129, 257], [385, 386, 65406, 65535]], dtype=np.uint16)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(wide).save(path)
    assert read_image(path, 1)[:, :, 0].tolist() == [[0, 0, 1, 1], [1, 2, 254, 255]]
    assert read_image(path).shape == (2, 4, 3)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png")
    assert (got[:2] == (10, 20, 30)).all()
    assert (got[2:] == 255).all()
    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / "t.png", transparency=(0, 0, 0))
    assert (read_image(tmp_path / "t.png") == 255).all()


def test_first_picture_of_several_counts(tmp_path):
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(tmp_path / "a.tif"), picture(seed=0))


# --- nasty: broken files are refused, by name and reason --------------------------------------------------------------


def broken(root):
    """One file of each kind that cannot be read, with a word of its reason."""
    root.mkdir(parents=True, exist_ok=True)
    noise = rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "webp", "bmp", "tif", "ppm"):
        whole = write(root / f"truncated.{suffix}", noise)
        content = whole.read_bytes()
        whole.write_bytes(content[: len(content) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "page.jpg").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    (root / "zeros.png").write_bytes(b"\0" * 4096)
    png_header(root / "bomb.png", 50_000, 50_000)
    png_header(root / "large.png", 8_001, 8_000)
    png_header(root / "hollow.png", 64, 64)
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(root / "float.tif")
    Image.fromarray(noise).save(root / "animation.png", format="GIF")
    return {
        "empty.jpg": "empty",
        "page.jpg": "not a picture",
        "zeros.png": "not a picture",
        "bomb.png": "64 Mpixel",
        "large.png": "8001 x 8000 pixels, more than 64 Mpixel",
        "float.tif": "floating-point",
        "animation.png": "not a picture",
    } | {path.name: "" for path in root.glob("truncated.*")}


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
    with open_image(png_header(tmp_path / "limit.png", 8_000, 8_000)) as image:
        assert image.size == (8_000, 8_000)


def test_corrupt_files_are_replaced_counted_and_named(tmp_path):
    folder_of(tmp_path, 12)
    (tmp_path / "0003.png").write_bytes(b"")
    (tmp_path / "0004.png").write_text("<html>")
    images = open_dataset(str(tmp_path), split="train", size=16, max_corrupt=0.5)
    crop = images.crop(3, rng(9))
    assert images.corrupt == {"0003.png": "the file is empty", "0004.png": "not a picture of a known format"}
    assert torch.equal(crop, images.crop(5, rng(9)))  # the next good one, with the draws it would have had anyway
    assert torch.equal(crop, images.crop(3, rng(9)))  # and the same once the corrupt ones are known
    (tmp_path / "0011.png").write_bytes(b"")
    last = open_dataset(str(tmp_path), split="train", size=16, max_corrupt=0.5)
    assert torch.equal(last.crop(11, rng(2)), last.crop(0, rng(2)))


def test_batches_with_corrupt_files_do_not_depend_on_history(tmp_path):
    folder_of(tmp_path, 8)
    (tmp_path / "0002.png").write_bytes(b"")

    def stream():
        return TrainStream(open_dataset(str(tmp_path), split="train", size=16, max_corrupt=0.2), 6, 0)

    whole = stream()
    batches = [whole.batch(step) for step in range(4)]
    assert whole.images.corrupt
    assert torch.equal(stream().batch(3), batches[3])


def test_training_stops_above_a_thousandth(tmp_path):
    """1 in 1000 is passed over; the second of 1000 stops the run and both are named."""
    first = write(tmp_path / "00000.ppm", picture(4, 4))
    content = first.read_bytes()
    for i in range(1, 1000):
        (tmp_path / f"{i:05d}.ppm").write_bytes(content)
    (tmp_path / "00100.ppm").write_bytes(content[:-5])
    images = open_dataset(str(tmp_path), split="train", size=4)
    images.crop(100, rng())
    assert list(images.corrupt) == ["00100.ppm"]
    (tmp_path / "00200.ppm").write_bytes(b"")
    with pytest.raises(
        CorruptDataError, match=r"at most 0.10% corrupt files of 1000, got 2 \(00100.ppm: .*; 00200.ppm: "
    ):
        images.crop(200, rng())


def test_all_corrupt_ends(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"")
    images = open_dataset(str(tmp_path), split="train", size=8, max_corrupt=1.0)
    with pytest.raises(CorruptDataError, match="3 corrupt ones"):
        images.crop(0, rng())


def test_evaluation_is_strict(tmp_path):
    folder_of(tmp_path, 3)
    (tmp_path / "0001.png").write_bytes(b"")
    images = open_dataset(str(tmp_path), split="eval", size=16)
    assert len(images) == 3
    images[0]
    with pytest.raises(CorruptImageError, match=r"0001\.png"):
        images[1]


# --- values: the check ------------------------------------------------------------------------------------------------


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
        "odd/deep.png": "mode I;16, converted",
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


# --- bad --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "builtin:nothing"}, "expected builtin:photos, builtin:digits or a folder of images, got"),
        ({"split": "test"}, 'expected split "train" or "eval", got \'test\''),
        ({"size": 0}, "expected size >= 1, got 0"),
        ({"in_channels": 4}, r"expected in_channels 1 \(grey\) or 3 \(RGB\), got 4"),
        ({"min_scale": 0.0}, r"expected min_scale in \(0, 1\], got 0.0"),
        ({"min_scale": 1.5}, r"expected min_scale in \(0, 1\], got 1.5"),
        ({"max_corrupt": -0.1}, r"expected max_corrupt in \[0, 1\], got -0.1"),
        ({"data": "builtin:digits", "min_scale": 0.5}, "expected no min_scale for builtin:digits"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(**({"data": "builtin:photos", "split": "train", "size": 16} | options))


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(ValueError, match="expected a folder with images"):
        open_dataset(str(tmp_path), split="train", size=16)
    with pytest.raises(ValueError, match="check_data: expected"):
        check_data(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "expected batch_size a positive multiple of world_size 1, got 0"),
        (
            {"batch_size": 6, "rank": 0, "world_size": 4},
            "expected batch_size a positive multiple of world_size 4, got 6",
        ),
        ({"rank": 2, "world_size": 2}, "expected rank in 0 ... world_size - 1, got 2 of 2"),
        ({"seed": -1}, "expected seed >= 0, got -1"),
    ],
)
def test_bad_streams_are_named(options, message):
    images = open_dataset("builtin:digits", split="train", size=8)
    with pytest.raises(ValueError, match=message):
        TrainStream(images, **({"batch_size": 4, "seed": 0} | options))
