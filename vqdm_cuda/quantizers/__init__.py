"""Quantizers: modules that replace feature vectors by codes of a codebook; one system per file."""

from vqdm_cuda.quantizers.base import Quantized, Quantizer
from vqdm_cuda.quantizers.ema import EMAQuantizer
from vqdm_cuda.quantizers.finite_scalar import FiniteScalarQuantizer
from vqdm_cuda.quantizers.index_backprop import IndexBackpropQuantizer
from vqdm_cuda.quantizers.linear import LinearQuantizer
from vqdm_cuda.quantizers.lookup_free import LookupFreeQuantizer
from vqdm_cuda.quantizers.multi_head import MultiHeadQuantizer
from vqdm_cuda.quantizers.multi_scale import MultiScaleQuantizer
from vqdm_cuda.quantizers.normalized import NormalizedQuantizer
from vqdm_cuda.quantizers.online import OnlineClusteringQuantizer
from vqdm_cuda.quantizers.residual import ResidualQuantizer
from vqdm_cuda.quantizers.sinkhorn import SinkhornQuantizer
from vqdm_cuda.quantizers.vector import VectorQuantizer
from vqdm_cuda.quantizers.wasserstein import WassersteinQuantizer

# By the word for the class in a saved configuration.
QUANTIZERS: dict[str, type[Quantizer]] = {
    quantizer.kind: quantizer
    for quantizer in (
        VectorQuantizer,
        EMAQuantizer,
        OnlineClusteringQuantizer,
        LinearQuantizer,
        NormalizedQuantizer,
        WassersteinQuantizer,
        SinkhornQuantizer,
        FiniteScalarQuantizer,
        LookupFreeQuantizer,
        IndexBackpropQuantizer,
        MultiHeadQuantizer,
        ResidualQuantizer,
        MultiScaleQuantizer,
    )
}

__all__ = [
    "QUANTIZERS",
    "EMAQuantizer",
    "FiniteScalarQuantizer",
    "IndexBackpropQuantizer",
    "LinearQuantizer",
    "LookupFreeQuantizer",
    "MultiHeadQuantizer",
    "MultiScaleQuantizer",
    "NormalizedQuantizer",
    "OnlineClusteringQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "SinkhornQuantizer",
    "VectorQuantizer",
    "WassersteinQuantizer",
]
