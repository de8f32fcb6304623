"""Fidelity of reconstructions: PSNR and SSIM by scikit-image itself, on RGB and on Y, in float64; and sharpness.

    psnr = 10 log10(data_range^2 / mean((a - b)^2))                skimage.metrics.peak_signal_noise_ratio
    ssim = mean over 7 x 7 uniform windows and over channels       skimage.metrics.structural_similarity
    RGB:  images in [0, 1], data_range 1
    Y:    skimage.color.rgb2ycbcr's first channel, the BT.601 luma in its 16 ... 235 form, with data_range 255:
          Y = 16 + 65.481 R + 128.553 G + 24.966 B

    sharpness = sum |grad Y of the reconstructions| / sum |grad Y of the originals|, sums over all pixels and images

with grad the differences to the pixels on the right and below. Below 1 pictures are blurred, which PSNR rewards: of
several pictures that a code may stand for, their mean has the least squared error. Grain makes it larger too, so it
says something beside the other figures only.

This Y is that of MATLAB, of BasicSR and of pyiqa, hence of the papers of this field. The full-range luma with
data_range 1 would give a PSNR lower by exactly 20 log10(255 / 219) = 1.32 dB, and another SSIM: never compare the two.

Images are not rounded to 8 bits. A grey image counts as three equal channels. Images of other numbers of channels have
"RGB" figures of all their channels, and no Y: their sharpness is that of the channels' mean. Values are taken per image
and averaged over images, so a batch's PSNR is the mean of its PSNRs, not the PSNR of its mean error. Equal images have
PSNR inf.
"""

import math

import numpy as np
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

__all__ = ["ImageMetrics", "psnr", "ssim", "to_luma"]

_WINDOW = 7


def to_luma(
    image: np.ndarray | Tensor,  # [3, H, W] or [1, H, W] in [0, 1]
) -> np.ndarray:
    """BT.601 luma [H, W] in 16 ... 235, float64."""
    return _pair("to_luma", image, image, luma=True)[0]


def psnr(
    a: np.ndarray | Tensor,  # [C, H, W] in [0, 1], C = 3 or 1
    b: np.ndarray | Tensor,  # same shape
    *,
    luma: bool = False,
) -> float:
    """Peak signal-to-noise ratio in dB, on RGB or (luma=True) on Y; inf for equal images."""
    return _psnr(*_pair("psnr", a, b, luma))


def ssim(
    a: np.ndarray | Tensor,  # [C, H, W] in [0, 1], C = 3 or 1
    b: np.ndarray | Tensor,  # same shape
    *,
    luma: bool = False,
) -> float:
    """Structural similarity, on RGB (mean of the three channels) or (luma=True) on Y. H and W are at least 7."""
    return _ssim(*_pair("ssim", a, b, luma))


class ImageMetrics:
    """Means over images of psnr_rgb, psnr_y, ssim_rgb, ssim_y; and the sharpness of all of them.

    Every image's values are kept and added without rounding (math.fsum), so the result has the same bits for any split
    into batches, any order and any division over processes.
    """

    NAMES = ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y")

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in self.NAMES}
        self._variation: list[tuple[float, float]] = []  # of each reconstruction, and of its original

    def __len__(self) -> int:
        """Number of images seen."""
        return len(self.values["psnr_rgb"])

    def update(
        self,
        original: np.ndarray | Tensor,  # [B, C, H, W] in [0, 1]
        reconstruction: np.ndarray | Tensor,  # same shape
    ) -> None:
        """Add a batch. Raises ValueError for unequal shapes and for values outside [0, 1]; then nothing is added."""
        if len(original.shape) != 4 or original.shape != reconstruction.shape:
            raise ValueError(
                "ImageMetrics: expected original and reconstruction [B, C, H, W] of one shape, "
                f"got {list(original.shape)} and {list(reconstruction.shape)}"
            )
        rows, variation = [], []
        for a, b in zip(original, reconstruction, strict=True):
            rgb = _pair("ImageMetrics", a, b, luma=False)
            row = {"psnr_rgb": _psnr(*rgb), "ssim_rgb": _ssim(*rgb)}
            if rgb[0].shape[2] == 3:
                y = _pair("ImageMetrics", a, b, luma=True)
                row |= {"psnr_y": _psnr(*y), "ssim_y": _ssim(*y)}
                variation.append((_total_variation(y[1]), _total_variation(y[0])))
            else:
                variation.append((_total_variation(rgb[1].mean(2)), _total_variation(rgb[0].mean(2))))
            rows.append(row)
        self._variation.extend(variation)
        for row in rows:
            for name, value in row.items():
                self.values[name].append(value)

    def result(self) -> dict[str, float | None]:
        """The four means, and `sharpness` (NaN of originals of one colour). Raises ValueError before any image.

        Those on Y are None of images that are neither grey nor RGB.
        """
        if not len(self):
            raise ValueError("ImageMetrics: expected at least one image, got none")
        ours, theirs = (math.fsum(sums) for sums in zip(*self._variation, strict=True))
        means = {name: math.fsum(values) / len(values) if values else None for name, values in self.values.items()}
        return means | {"sharpness": ours / theirs if theirs > 0 else math.nan}


def _total_variation(luma: np.ndarray) -> float:
    down, right = np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1]
    return float(np.hypot(down, right).sum())


def _psnr(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    with np.errstate(divide="ignore"):  # equal images: 1 / 0 = inf is the answer, not an accident
        return float(peak_signal_noise_ratio(a, b, data_range=data_range))


def _ssim(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    if min(a.shape[:2]) < _WINDOW:
        raise ValueError(f"ssim: expected images of at least {_WINDOW} x {_WINDOW} pixels, got {list(a.shape[:2])}")
    channel_axis = 2 if a.ndim == 3 else None
    return float(structural_similarity(a, b, win_size=_WINDOW, data_range=data_range, channel_axis=channel_axis))


def _pair(
    function: str, a: np.ndarray | Tensor, b: np.ndarray | Tensor, luma: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both images as scikit-image takes them, and the data range that goes with them."""
    if a.shape != b.shape:
        raise ValueError(f"{function}: expected two images of one shape, got {list(a.shape)} and {list(b.shape)}")
    first, second = _channels_last(function, a), _channels_last(function, b)
    if luma and first.shape[2] != 3:
        raise ValueError(f"{function}: expected an image [3, H, W] or [1, H, W] for its luma, got {list(a.shape)}")
    if luma:
        return rgb2ycbcr(first)[..., 0], rgb2ycbcr(second)[..., 0], 255.0
    return first, second, 1.0


def _channels_last(function: str, image: np.ndarray | Tensor) -> np.ndarray:
    """float64 [H, W, C], C = 3 of a grey image; checks shape and range."""
    if len(image.shape) != 3 or image.shape[0] < 1:
        raise ValueError(f"{function}: expected an image [C, H, W], got {list(image.shape)}")
    array = image.detach().cpu().double().numpy() if isinstance(image, Tensor) else np.asarray(image, dtype=np.float64)
    # The commonest mistake of all is an image in [-1, 1] or 0 ... 255. `not` also catches NaN.
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"{function}: expected values in [0, 1], got {array.min():.4g} ... {array.max():.4g}")
    grey = array.shape[0] == 1
    return (np.broadcast_to(array, (3, *array.shape[1:])) if grey else array).transpose(1, 2, 0)
