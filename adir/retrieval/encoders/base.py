"""Encoders map images to vectors whose distances measure how similar the images are.

Here: what all encoders share.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from adir.errors import InputError
from adir.images import require_unit, to_uint8


class Encoder(Protocol):
    """Base class of encoders. A subclass sets the attributes and defines `prepare` and `vectors`.

    metric: "angular" for unit vectors, "euclidean" for others; the metric of the search.
    weights_sha256: must change whenever a vector does (weights, architecture or preprocessing): it
        is the cache key of stored embeddings.
    input_size: side in pixels of the network's square input.
    """

    name: str
    metric: str
    weights_sha256: str
    input_size: int

    def prepare(self, image: Tensor) -> Tensor:
        """Return the network's input, of the same shape for all images, of one (3, H, W) image in
        [-1, 1]. Thread-safe.
        """

    def vectors(self, inputs: Tensor) -> Tensor:
        """Return (B, D) float32 on the CPU of a batch of prepared inputs.

        With the network on the CPU, a vector must not depend on its batch, to the last bit: indexes
        on disk and in memory use different batches.
        """

    def image(self, batch: Tensor) -> Tensor:
        """Return (B, D) vectors of (B, 3, H, W) images in [-1, 1] of any size:

        `prepare` and `vectors` in one.
        """
        require_images(batch)
        return self.vectors(torch.stack([self.prepare(image) for image in batch]))

    def text(self, prompts: list[str]) -> Tensor:
        """Return (B, D) unit vectors of prompts, in the space of the images.

        Raises InputError without a text encoder.
        """
        raise InputError(f"the {self.name} encoder has no text side; an encoder such as CLIP has")


def require_images(batch: Tensor) -> None:
    """Raise ValueError unless batch is (B, 3, H, W), finite and in [-1, 1]."""
    require_unit(batch, "an encoder", least=-1)


def resize(image: Tensor, size: int) -> Tensor:
    """Return (3, size, size) of a (3, H, W) image: antialiased bicubic, clamped to [-1, 1].

    The whole image is resized and not cropped, which distorts it unless it is square: a crop could
    lose its subject. Raises ValueError unless it is finite and in [-1, 1].
    """
    batch = image[None].float().cpu()
    require_images(batch)
    if batch.shape[2:] == (size, size):
        return batch[0]
    return functional.interpolate(batch, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)[
        0
    ]


def as_pil(image: Tensor) -> Image.Image:
    """Return (3, H, W) in [-1, 1] as the 8-bit PIL image that the libraries of pretrained encoders
    preprocess.
    """
    return Image.fromarray(to_uint8(image))


def encode(network: Callable[[Tensor], Tensor], inputs: Tensor, device: str) -> Tensor:
    """Return (B, D) unit vectors, float32 on the CPU, of (B, ...) inputs to a pretrained network on
    `device`.

    On the CPU each input runs alone, so its vector does not depend on the batch, to the last bit:
    kernels, and so the order of summation, depend on the batch size. With a random ViT-B/32,
    batches of 16 changed vectors by 6e-7 and saved 0.02 of
    0.11 s per image. On other devices the batch runs whole, in full float32: cuDNN's default, TF32,
        keeps three digits.
    """

    def unit(batch: Tensor) -> Tensor:
        return functional.normalize(network(batch).float().cpu(), dim=1)

    if device == "cpu":
        return torch.cat([unit(alone) for alone in inputs.split(1)])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return unit(inputs.to(device))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 of names, types, shapes and values, which no file format changes. 0.4 s for a
    ViT-B/32.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise InputError that names the file and the first tensor with NaN or Inf: every vector would
    be NaN.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{file}: damaged weights: {name} holds NaN or Inf; download the file again"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Disable log messages up to WARNING, which libraries emit while they build a network."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
