"""Exact, fast vector quantization for image tokenizers. The public API is what stands here, and nothing else."""

from vqdm_cuda._version import __version__
from vqdm_cuda.ops.nearest_code import nearest_code

__all__ = ["__version__", "nearest_code"]
