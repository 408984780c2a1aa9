"""Encoders: from pictures to vectors whose distances say how alike the pictures are.

Here: what every encoder has, the embedded one and the pixel control. The pretrained ones: clip.py, cyclip.py, blip.py.
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
    """What retrieval asks of an encoder; ours are subclasses.

    metric: "angular" for unit vectors, "euclidean" for others; an index searches by it.
    weights_sha256: changes whenever a vector does (weights, architecture or preprocessing); stored embeddings are
        found again by it.
    input_size: side in pixels of the square that the network sees.
    """

    name: str
    metric: str
    weights_sha256: str
    input_size: int

    def prepare(self, picture: Tensor) -> Tensor:
        """What the network takes of one (3, H, W) picture in [-1, 1]; one shape for all. Safe in several threads."""

    def vectors(self, inputs: Tensor) -> Tensor:
        """(B, D) float32 on the CPU of a batch of what `prepare` gave; with the network on the CPU, to the bit the same in
        any batch: an index on disk is made in other batches than one in memory."""

    def image(self, batch: Tensor) -> Tensor:
        """(B, 3, H, W) pictures in [-1, 1], any size, to (B, D): `prepare` and `vectors` in one."""
        require_pictures(batch)
        return self.vectors(torch.stack([self.prepare(picture) for picture in batch]))

    def text(self, prompts: list[str]) -> Tensor:
        """(B, D) unit vectors of prompts, in the pictures' space. Raises InputError where there is no text side."""
        raise InputError(f"the {self.name} encoder has no text side; an encoder such as CLIP has")


def require_pictures(batch: Tensor) -> None:
    """Raise ValueError unless batch is (B, 3, H, W), finite and in [-1, 1]."""
    require_unit(batch, "an encoder", least=-1)


def resize(picture: Tensor, size: int) -> Tensor:
    """(3, size, size) of a (3, H, W) picture: antialiased bicubic, kept in [-1, 1].

    The whole picture is used, so one that is not square is squeezed: a crop could lose what the picture shows.
    Raises ValueError unless it is finite and in [-1, 1].
    """
    batch = picture[None].float().cpu()
    require_pictures(batch)
    if batch.shape[2:] == (size, size):
        return batch[0]
    return functional.interpolate(batch, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)[0]


def as_pil(picture: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as the 8-bit picture that the preprocessing of the pretrained encoders' libraries takes."""
    return Image.fromarray(to_uint8(picture))


def encode(network: Callable[[Tensor], Tensor], inputs: Tensor, device: str) -> Tensor:
    """(B, D) unit vectors, float32 on the CPU, of (B, ...) inputs to a pretrained network that lives on `device`.

    On the CPU each input runs alone, which gives the same to the last bit in any batch: convolutions and matrix products
    choose their kernels, and so their order of summation, by the size of the batch. In batches of 16, a ViT-B/32 of random
    weights gave vectors 6e-7 away, for 0.09 s of processor time a picture instead of 0.11 s. Elsewhere the batch runs whole,
    in full float32: cuDNN's TF32, on by default, would keep three digits.
    """

    def unit(batch: Tensor) -> Tensor:
        return functional.normalize(network(batch).float().cpu(), dim=1)

    if device == "cpu":
        return torch.cat([unit(alone) for alone in inputs.split(1)])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return unit(inputs.to(device))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: the same weights in any container. 0.4 s for a ViT-B/32."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise InputError that names the file and the first tensor with NaN or Inf: every vector would be NaN."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{file}: damaged weights: {name} holds NaN or Inf; get the file again")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines up to WARNING of a library that speaks to Python's root logger while it builds a network."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
