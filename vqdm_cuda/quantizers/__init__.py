"""Quantizers: modules that replace feature vectors by codes of a codebook; one system per file."""

from vqdm_cuda.quantizers.base import Quantized, Quantizer
from vqdm_cuda.quantizers.multi_head import MultiHeadQuantizer
from vqdm_cuda.quantizers.multi_scale import MultiScaleQuantizer
from vqdm_cuda.quantizers.sinkhorn import SinkhornQuantizer
from vqdm_cuda.quantizers.vector import VectorQuantizer
from vqdm_cuda.quantizers.wasserstein import WassersteinQuantizer

__all__ = [
    "MultiHeadQuantizer",
    "MultiScaleQuantizer",
    "Quantized",
    "Quantizer",
    "SinkhornQuantizer",
    "VectorQuantizer",
    "WassersteinQuantizer",
]
