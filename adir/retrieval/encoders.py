"""Encoders: from pictures to vectors whose distances say how alike the pictures are."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from adir.errors import InputError
from adir.files import sha256_of_bytes, sha256_of_file
from adir.retrieval.encoder_network import INPUT_SIZE, WEIGHTS_NAME, load_network

EMBEDDED_FOLDER = Path(__file__).parent.parent / "embedded" / "encoder"


class Encoder(Protocol):
    """What retrieval asks of an encoder.

    metric: "angular" for unit vectors, "euclidean" for others; an index searches by it.
    weights_sha256: changes whenever a vector does; stored embeddings are found again by it.
    """

    name: str
    metric: str
    weights_sha256: str

    def image(self, batch: Tensor) -> Tensor:
        """(B, 3, H, W) pictures in [-1, 1], any size, to (B, D) float32 on the CPU, the same in any batch."""

    def text(self, prompts: list[str]) -> Tensor:
        """(B, D) unit vectors of prompts, in the pictures' space. Raises InputError where there is no text side."""


def resize(batch: Tensor, size: int) -> Tensor:
    """(B, 3, size, size): antialiased bicubic, kept in [-1, 1].

    The whole picture is used, so one that is not square is squeezed: a crop could lose what the picture shows.
    Raises ValueError unless batch is (B, 3, H, W), finite and in [-1, 1].
    """
    if batch.ndim != 4 or batch.shape[1] != 3:
        raise ValueError(f"an encoder takes (B, 3, H, W) pictures, got shape {tuple(batch.shape)}")
    if batch.numel() and not (batch.min() >= -1 and batch.max() <= 1):  # written so that NaN fails too
        low, high = batch.min().item(), batch.max().item()
        raise ValueError(f"an encoder takes pictures in [-1, 1], got values from {low:.3g} to {high:.3g}")
    batch = batch.float().cpu()
    if batch.shape[2:] == (size, size):
        return batch
    return functional.interpolate(batch, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


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
        self.weights_sha256 = sha256_of_file(path)
        self.network = load_network(path)

    @torch.inference_mode()
    def image(self, batch: Tensor) -> Tensor:
        return self.network(resize(batch, INPUT_SIZE)).clone()

    def text(self, prompts: list[str]) -> Tensor:
        raise InputError("the embedded encoder has no text side; an encoder such as CLIP has")


class PixelEncoder:
    """The control `pixel`: the picture itself at size x size, flattened; distance is the rms difference of its pixels.

    Not unit vectors: normalising would make a dark picture equal to a bright one, and no map to a sphere keeps the
    order of pixel distances exactly. So its metric is "euclidean".
    """

    metric = "euclidean"

    def __init__(self, size: int = 32) -> None:
        if size < 1:
            raise InputError(f"pixel encoder: size {size} asked, at least 1 needed")
        self.name = "pixel"
        self.size = size
        self.weights_sha256 = sha256_of_bytes(f"pixel encoder, antialiased bicubic, size {size}".encode())

    def image(self, batch: Tensor) -> Tensor:
        pixels = resize(batch, self.size).flatten(1)
        return pixels / pixels.shape[1] ** 0.5

    def text(self, prompts: list[str]) -> Tensor:
        raise InputError("the pixel encoder has no text side; an encoder such as CLIP has")
