"""The base class of encoders, and the functions that encoders share."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from adir.errors import InputError
from adir.images import require_unit, to_uint8


class Encoder(Protocol):
    """Base class of encoders.

    A subclass sets the attributes and implements `prepare` and `vectors`.

    Attributes:
        name: label for tables and messages.
        metric: metric of the search: "angular" if the vectors are unit vectors, else "euclidean".
        weights_sha256: part of the cache key of embeddings. Any change of weights, architecture or
            preprocessing that changes a vector must change this hash.
        input_size: side in pixels of the network's square input.
    """

    name: str
    metric: str
    weights_sha256: str
    input_size: int

    def prepare(self, image: Tensor) -> Tensor:
        """Return the network's input for one image.

        All inputs have the same shape. The method is thread-safe.

        Args:
            image: (3, H, W) in [-1, 1].
        """

    def vectors(self, inputs: Tensor) -> Tensor:
        """Return the vectors of prepared inputs: (B, D), float32, on the CPU.

        If the network runs on the CPU, the vector of an input must be the same in every batch, even
        in the last bit. Indexes on disk and in memory encode the same images in different batches.
        """

    def image(self, batch: Tensor) -> Tensor:
        """Return the (B, D) vectors of (B, 3, H, W) images in [-1, 1].

        The images are passed to `prepare`, and the results to `vectors`.

        Raises ValueError unless the images are finite and in [-1, 1].
        """
        require_images(batch)
        return self.vectors(torch.stack([self.prepare(image) for image in batch]))

    def text(self, prompts: list[str]) -> Tensor:
        """Return (B, D) unit vectors of prompts, in the same space as the vectors of images.

        Raises InputError if the encoder has no text network.
        """
        raise InputError(
            f"the {self.name} encoder cannot encode text; choose an encoder such as CLIP"
        )


def require_images(batch: Tensor) -> None:
    """Raise ValueError unless the batch is (B, 3, H, W), finite and in [-1, 1]."""
    require_unit(batch, "an encoder", least=-1)


def resize(image: Tensor, size: int) -> Tensor:
    """Return a (3, H, W) image, resized to (3, size, size) by the antialiased bicubic filter.

    The result is clamped to [-1, 1]. An image that is not square is distorted, because a crop could
    lose its subject. Raises ValueError unless the image is finite and in [-1, 1].
    """
    batch = image[None].float().cpu()
    require_images(batch)
    if batch.shape[2:] == (size, size):
        return batch[0]
    return functional.interpolate(batch, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)[
        0
    ]


def as_pil(image: Tensor) -> Image.Image:
    """Return a (3, H, W) image in [-1, 1] as an 8-bit PIL image, for preprocessing by libraries.

    Raises ValueError unless the image is finite and in [-1, 1].
    """
    require_images(image[None])
    return Image.fromarray(to_uint8(image))


def encode(network: Callable[[Tensor], Tensor], inputs: Tensor, device: str) -> Tensor:
    """Run a pretrained network and return unit vectors: (B, D), float32, on the CPU.

    On the CPU, the network gets one input per call, so the vector of an input is the same in every
    batch, even in the last bit. Larger batches would change the order of summation: for a ViT-B/32
    with random weights, batches of 16 changed vectors by 6e-7 and saved only 0.02 of 0.11 s per
    image. On other devices, the network gets the whole batch in one call. cuDNN's default data
    type, TF32, is disabled there, because it keeps only three decimal digits.

    Args:
        network: maps a batch of inputs to (B, D) vectors.
        inputs: (B, ...) prepared inputs.
        device: device of the network.
    """

    def unit(batch: Tensor) -> Tensor:
        return functional.normalize(network(batch).float().cpu(), dim=1)

    if device == "cpu":
        return torch.cat([unit(alone) for alone in inputs.split(1)])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return unit(inputs.to(device))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 of the names, data types, shapes and values of tensors.

    The hash does not depend on the file format. It takes 0.4 s for a ViT-B/32.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise InputError if a weight is NaN or Inf; every vector would then be NaN.

    Args:
        tensors: weights by name.
        file: file of the weights, for the message.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{file}: the weights are damaged ({name} holds NaN or Inf); download the weights "
                "again"
            )
