"""Near-duplicates: corpus pictures that are the test picture itself, perhaps mirrored, compressed or resized.

A neighbour that is the ground truth would make retrieval look good for the wrong reason, so they are left out.
"""

from collections.abc import Iterable
from typing import NamedTuple

import imagehash
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from adir.files import sha256_of_bytes
from adir.images import to_uint8

HAMMING = 8  # of 64 bits
DIFFERENCE = 7.0  # grey levels
THUMBNAIL = 32  # pixels a side
COLOURS_ERROR = 1.01  # grey levels: half of `coarse_colours`' step, and float rounding


class Fingerprints(NamedTuple):
    """Of N pictures: SHA-256 of the pixels; (N, 64) perceptual hash bits; (N, 3, 32, 32) thumbnails in grey levels."""

    sha256: list[str]
    bits: np.ndarray
    thumbnails: Tensor


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """(64,) bool: pHash (Zauner, 2010) of (H, W, 3) pixels, the signs of low cosine frequencies around their median."""
    return imagehash.phash(Image.fromarray(pixels)).hash.ravel()


def thumbnail(x: Tensor) -> Tensor:
    """(3, 32, 32) grey levels of (3, H, W) in [-1, 1], antialiased, less their mean: a brighter copy is a copy."""
    small = functional.interpolate(x[None].float(), (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)[0]
    return (small - small.mean()) * 127.5


def coarse_colours(small: Tensor) -> np.ndarray:
    """(48,) int8: the 4x4 means of a thumbnail, in steps of two grey levels; what a shard keeps of it.

    By the triangle inequality two thumbnails differ on average by no less than their 4x4 means do, so these can rule a
    copy out: with `COLOURS_ERROR` for the rounding of one side, no copy is lost.
    """
    means = functional.avg_pool2d(small[None], THUMBNAIL // 4)[0]
    return (means / 2).round().clamp(-127, 127).to(torch.int8).flatten().numpy()


def packed_hash(pixels: np.ndarray) -> np.ndarray:
    """(8,) uint8: the perceptual hash, eight bits a byte."""
    return np.packbits(perceptual_hash(pixels))


def may_be_copy(bits: np.ndarray, colours: np.ndarray, x: Tensor) -> np.ndarray:
    """(N,) bool: by what shards keep, which pictures can be near-duplicates of (3, H, W) picture x; a superset of them.

    bits: (N, 8) uint8.  colours: (N, 48) int8.  20 ms a million on one core.
    """
    found = np.zeros(len(bits), bool)
    for view in (x, x.flip(-1)):
        other = packed_hash(to_uint8(view)).view(np.uint64)
        near = np.flatnonzero(np.bitwise_count(np.ascontiguousarray(bits).view(np.uint64)[:, 0] ^ other) <= HAMMING)
        means = functional.avg_pool2d(thumbnail(view)[None], THUMBNAIL // 4).flatten().numpy()
        difference = np.abs(colours[near] * 2.0 - means).mean(1)
        found[near[difference < DIFFERENCE + COLOURS_ERROR]] = True
    return found


def is_copy(x: Tensor, other: Tensor) -> bool:
    """Whether two pictures, (3, H, W) in [-1, 1], are near-duplicates by the rule of `near_duplicates`."""
    bits, small = perceptual_hash(to_uint8(other)), thumbnail(other)
    return any(
        (bits != perceptual_hash(to_uint8(view))).sum() <= HAMMING
        and (small - thumbnail(view)).abs().mean().item() < DIFFERENCE
        for view in (x, x.flip(-1))
    )


def pixels_sha256(pixels: np.ndarray) -> str:
    """SHA-256 of the size and the grey levels, however the picture was stored."""
    return sha256_of_bytes(repr(pixels.shape).encode() + pixels.tobytes())


def fingerprints(pictures: Iterable[Tensor]) -> Fingerprints:
    """Fingerprints of (3, H, W) pictures in [-1, 1]: 1.5 ms each at 128x128 on one core."""
    hashes, bits, thumbnails = [], [], []
    for x in pictures:
        pixels = to_uint8(x)
        hashes.append(pixels_sha256(pixels))
        bits.append(perceptual_hash(pixels))
        thumbnails.append(thumbnail(x))
    return Fingerprints(hashes, np.stack(bits), torch.stack(thumbnails))


def near_duplicates(x: Tensor, known: Fingerprints) -> list[int]:
    """Rows of the known pictures that equal (3, H, W) picture x in [-1, 1], or nearly so.

    Equal: the same pixels. Nearly: for x or its mirror image, pHash within HAMMING bits and 32x32 thumbnails, each
    less its mean, that differ by less than DIFFERENCE grey levels on average.

    Where the thresholds come from: copies of every second picture of the embedded corpus and of 1,023 pictures of
    Caltech-101 (JPEG quality 50 and 75, resized by 0.5, 0.75 and 2, brightness +-5 %, mirrored) differ by at most 6
    bits and 6.0 grey levels; JPEG quality 30 by 10 and 5.1. Of the pairs of different ids, those found are: in the
    embedded corpus one (of 94 thousand), two fields that share two thirds of their ground; in Caltech-101 80 (of 523
    thousand), 76 of them leopards that the data set holds a second time, mirrored, and 4 pictures that it holds twice.
    """
    pixels = to_uint8(x)
    digest = pixels_sha256(pixels)
    found = np.array([other == digest for other in known.sha256])
    for view in (x, x.flip(-1)):
        hamming = (known.bits != perceptual_hash(to_uint8(view))).sum(1)
        difference = (known.thumbnails - thumbnail(view)).abs().mean((1, 2, 3)).numpy()
        found |= (hamming <= HAMMING) & (difference < DIFFERENCE)
    return np.flatnonzero(found).tolist()
