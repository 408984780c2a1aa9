"""The encoder of the control `pixel`, whose distances are pixel differences."""

from torch import Tensor

from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.retrieval.encoders.base import Encoder, resize


class PixelEncoder(Encoder):
    """Encoder whose vector is the flattened image at size x size; a control.

    The distance of two vectors is the root mean square difference of pixels. The metric is
    "euclidean", because with unit vectors a dark image would equal a bright one, and no map to a
    sphere keeps the order of pixel distances.

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
