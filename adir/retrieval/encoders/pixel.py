"""The pixel control: distances between the images themselves."""

from torch import Tensor

from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.retrieval.encoders.base import Encoder, resize


class PixelEncoder(Encoder):
    """The control `pixel`: the image at size x size, flattened.

    Distance is the rms difference of pixels.

    Its metric is "euclidean": unit vectors would make a dark image equal to a bright one, and no
    map to a sphere keeps the order of pixel distances.
    """

    metric = "euclidean"

    def __init__(self, size: int = 32) -> None:
        if size < 1:
            raise InputError(f"pixel encoder: size {size} asked, at least 1 needed")
        self.name = "pixel"
        self.input_size = size
        self.weights_sha256 = sha256_of_bytes(
            f"pixel encoder, antialiased bicubic, size {size}".encode()
        )

    def prepare(self, image: Tensor) -> Tensor:
        return resize(image, self.input_size)

    def vectors(self, inputs: Tensor) -> Tensor:
        pixels = inputs.flatten(1)
        return pixels / pixels.shape[1] ** 0.5
