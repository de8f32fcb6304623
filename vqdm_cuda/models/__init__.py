"""Encoder, decoder and the tokenizer made of both and a quantizer."""

from vqdm_cuda.models.decoder import Decoder
from vqdm_cuda.models.encoder import Encoder
from vqdm_cuda.models.tokenizer import ImageTokenizer

__all__ = ["Decoder", "Encoder", "ImageTokenizer"]
