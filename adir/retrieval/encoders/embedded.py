"""The embedded encoder: a small CNN that ships with the package."""

from pathlib import Path

import torch
from torch import Tensor

from adir.errors import InputError
from adir.files import sha256_of_bytes, sha256_of_file
from adir.retrieval.encoders.base import each_alone, require_pictures, resize
from adir.retrieval.encoders.embedded_network import INPUT_SIZE, WEIGHTS_NAME, load_network

EMBEDDED_FOLDER = Path(__file__).parents[2] / "embedded" / "encoder"


class EmbeddedEncoder:
    """The CNN in `adir/embedded/encoder`, trained to see through degradations; 256-dimensional unit vectors.

    y goes in as it is (its low resolution included), resized to 64x64.  folder: of other weights of the same network.
    """

    metric = "angular"

    def __init__(self, folder: str | Path | None = None) -> None:
        path = Path(EMBEDDED_FOLDER if folder is None else folder) / WEIGHTS_NAME
        if not path.is_file():
            raise InputError(f"embedded encoder: {path} is missing; reinstall (or run benchmarks/train_encoder.py)")
        self.name = "embedded"
        self.input_size = INPUT_SIZE
        how = "each alone"  # they ran in batches once, which gave others in the last bit
        self.weights_sha256 = sha256_of_bytes(f"{sha256_of_file(path)} {how}".encode())
        self.network = load_network(path)

    def prepare(self, picture: Tensor) -> Tensor:
        return resize(picture, INPUT_SIZE)

    @torch.inference_mode()
    def vectors(self, inputs: Tensor) -> Tensor:
        return each_alone(self.network, inputs)

    def image(self, batch: Tensor) -> Tensor:
        require_pictures(batch)
        return self.vectors(torch.stack([self.prepare(picture) for picture in batch]))

    def text(self, prompts: list[str]) -> Tensor:
        raise InputError("the embedded encoder has no text side; an encoder such as CLIP has")
