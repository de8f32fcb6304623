"""The specification: each op of `vqdm_cuda` in plain PyTorch, in float64, as short as it can be.

Tests compare the kernels with these functions. The library itself never calls them.
"""

from vqdm_cuda.reference.code_sums import code_sums
from vqdm_cuda.reference.gaussian_w2 import gaussian_w2
from vqdm_cuda.reference.moments import moments
from vqdm_cuda.reference.nearest_code import nearest_code
from vqdm_cuda.reference.sinkhorn import sinkhorn
from vqdm_cuda.reference.sqrtm import sqrtm

__all__ = ["code_sums", "gaussian_w2", "moments", "nearest_code", "sinkhorn", "sqrtm"]
