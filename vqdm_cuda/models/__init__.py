"""Encoders, decoders and the tokenizer made of one of each and a quantizer."""

from vqdm_cuda.models.decoder import Decoder
from vqdm_cuda.models.encoder import Encoder
from vqdm_cuda.models.network import DecoderNetwork, EncoderNetwork
from vqdm_cuda.models.small import SmallDecoder, SmallEncoder
from vqdm_cuda.models.tokenizer import ImageTokenizer
from vqdm_cuda.models.vit import ViTDecoder, ViTEncoder

__all__ = [
    "Decoder",
    "DecoderNetwork",
    "Encoder",
    "EncoderNetwork",
    "ImageTokenizer",
    "SmallDecoder",
    "SmallEncoder",
    "ViTDecoder",
    "ViTEncoder",
]
