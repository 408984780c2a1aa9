"""The encoder `pixel`, a baseline that compares images pixel by pixel."""

from torch import Tensor

from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.retrieval.encoders.base import Encoder, resize


class PixelEncoder(Encoder):
    """Baseline encoder whose vector is the image, resized to size x size and flattened.

    The vector is scaled so that the distance of two vectors is the root mean square difference of
    the images' pixels. The metric is "euclidean", because "angular" needs unit vectors, and
    normalisation would change the order of the distances. For example, a dark and a bright image
    could have equal unit vectors.

    Args:
        size: side in pixels to which images are resized.
    """

    metric = "euclidean"

    def __init__(self, size: int = 32) -> None:
        if size < 1:
            raise InputError(f"pixel encoder: size={size} must be at least 1")
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
