"""Exact, fast vector quantization for image tokenizers.

The public API is what stands here, and nothing else:
operators, matching losses, the paper's criteria, quantizers, and the image tokenizer.
"""

from vqdm_cuda import reference
from vqdm_cuda._library import build_info
from vqdm_cuda._version import __version__
from vqdm_cuda.criteria import Usage, criterion_triple, perplexity, quantization_error, utilization
from vqdm_cuda.divergences import gaussian_bhattacharyya, gaussian_kl
from vqdm_cuda.kmeans import kmeans
from vqdm_cuda.losses import rate_distortion_gaussian, wasserstein_loss
from vqdm_cuda.models import (
    Decoder,
    DecoderNetwork,
    Encoder,
    EncoderNetwork,
    ImageTokenizer,
    SmallDecoder,
    SmallEncoder,
    ViTDecoder,
    ViTEncoder,
)
from vqdm_cuda.ops.code_sums import code_sums
from vqdm_cuda.ops.gaussian_w2 import gaussian_w2
from vqdm_cuda.ops.moments import moments
from vqdm_cuda.ops.nearest_code import nearest_code
from vqdm_cuda.ops.sinkhorn import sinkhorn
from vqdm_cuda.ops.sqrtm import sqrtm
from vqdm_cuda.quantizers import (
    QUANTIZERS,
    EMAQuantizer,
    FiniteScalarQuantizer,
    IndexBackpropQuantizer,
    LinearQuantizer,
    LookupFreeQuantizer,
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    NormalizedQuantizer,
    OnlineClusteringQuantizer,
    Quantized,
    Quantizer,
    ResidualQuantizer,
    SinkhornQuantizer,
    VectorQuantizer,
    WassersteinQuantizer,
)

__all__ = [
    "QUANTIZERS",
    "Decoder",
    "DecoderNetwork",
    "EMAQuantizer",
    "Encoder",
    "EncoderNetwork",
    "FiniteScalarQuantizer",
    "ImageTokenizer",
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
    "SmallDecoder",
    "SmallEncoder",
    "Usage",
    "VectorQuantizer",
    "ViTDecoder",
    "ViTEncoder",
    "WassersteinQuantizer",
    "__version__",
    "build_info",
    "code_sums",
    "criterion_triple",
    "gaussian_bhattacharyya",
    "gaussian_kl",
    "gaussian_w2",
    "kmeans",
    "moments",
    "nearest_code",
    "perplexity",
    "quantization_error",
    "rate_distortion_gaussian",
    "reference",
    "sinkhorn",
    "sqrtm",
    "utilization",
    "wasserstein_loss",
]
