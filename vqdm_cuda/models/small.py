"""The small convolutional autoencoder of OptVQ's Table 4 (arXiv 2412.15195), for 32-pixel images of MNIST and CIFAR-10.

    encoder  conv 3x3 16, relu   conv 2x2 16, stride 2   conv 3x3 16, relu   conv 2x2 16, stride 2
             conv 3x3 32, relu   conv 3x3 32
    decoder  conv 3x3 32, relu   transposed conv 2x2 16, stride 2   conv 3x3 16, relu
             transposed conv 2x2 16, stride 2   conv 3x3 16, relu   conv 3x3 C, relu

The table leaves open how its 32 channels meet the latents: 1x1 convolutions, `quant_conv` and `post_quant_conv`, stand
between them, as in VQGAN. Its last relu makes values from 0 up, so the networks see pixels in [0, 1]: (x + 1) / 2 on
the way in, 2 y - 1 on the way out.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from vqdm_cuda.models.network import DecoderNetwork, EncoderNetwork

__all__ = ["SmallDecoder", "SmallEncoder"]

_FACTOR = 4


class SmallEncoder(EncoderNetwork):
    """Images [B, in_channels, H, W] to latents [B, latent_channels, H/4, W/4]."""

    kind: ClassVar[str] = "small_encoder"

    def __init__(self, in_channels: int = 3, latent_channels: int = 8) -> None:
        super().__init__()
        _check(type(self).__name__, in_channels, latent_channels)
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, _FACTOR
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.down1 = nn.Conv2d(16, 16, 2, stride=2)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.down2 = nn.Conv2d(16, 16, 2, stride=2)
        self.conv3 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv4 = nn.Conv2d(32, 32, 3, padding=1)
        self.quant_conv = nn.Conv2d(32, latent_channels, 1)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "in_channels": self.in_channels, "latent_channels": self.latent_channels}

    def forward(
        self,
        images: Tensor,  # [B, in_channels, H, W] in [-1, 1]
    ) -> Tensor:
        """Latents [B, latent_channels, H/4, W/4]."""
        x = self.down1(self.conv1((images + 1) / 2).relu())
        x = self.down2(self.conv2(x).relu())
        return self.quant_conv(self.conv4(self.conv3(x).relu()))


class SmallDecoder(DecoderNetwork):
    """Latents [B, latent_channels, h, w] to images [B, in_channels, 4h, 4w] of -1 and more, not clamped above."""

    kind: ClassVar[str] = "small_decoder"

    def __init__(self, in_channels: int = 3, latent_channels: int = 8) -> None:
        super().__init__()
        _check(type(self).__name__, in_channels, latent_channels)
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, _FACTOR
        self.post_quant_conv = nn.Conv2d(latent_channels, 32, 1)
        self.conv1 = nn.Conv2d(32, 32, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv4 = nn.Conv2d(16, in_channels, 3, padding=1)
        # Starts at grey. Around 0, where half of the values lie below the last relu, an optimizer's first steps can
        # push all of them there, and no gradient comes back from black pictures.
        nn.init.constant_(self.conv4.get_parameter("bias"), 0.5)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv4.get_parameter("weight")

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "in_channels": self.in_channels, "latent_channels": self.latent_channels}

    def forward(
        self,
        z_q: Tensor,  # [B, latent_channels, h, w]
    ) -> Tensor:
        """Images [B, in_channels, 4h, 4w]."""
        x = self.up1(self.conv1(self.post_quant_conv(z_q)).relu())
        x = self.up2(self.conv2(x).relu())
        return 2 * self.conv4(self.conv3(x).relu()).relu() - 1


def _check(name: str, in_channels: int, latent_channels: int) -> None:
    for option, value in (("in_channels", in_channels), ("latent_channels", latent_channels)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: expected {option} to be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name}: expected {option} of at least 1, got {value}")
