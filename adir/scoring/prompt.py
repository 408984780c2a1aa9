"""CLIP similarity, which measures how well an image shows the content of a prompt."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from adir.errors import InputError
from adir.images import require_unit
from adir.scoring.base import Direction, TextEncoder
from adir.weights.registry import WeightsFile


class PromptSimilarity:
    """Metric `clip-prompt`: cosine similarity of image and prompt, -1 to 1, higher is better.

    The vectors are those of CLIP (Radford et al., 2021). In practice scores are about 0.15 to 0.4.
    They are comparable only between images of one prompt and one encoder. CLIPScore (Hessel et al.,
    2021) is 2.5 times this score.

    Args:
        encoder: builds the encoder at its first use; None if no encoder is configured. If it
            raises InputError, for example because weights are missing, only this score is missing.
    """

    name = "clip-prompt"
    direction: Direction = "higher"
    range: tuple[float | None, float | None] = (-1, 1)
    needs_reference = False
    needs_prompt = True
    weights_files: tuple[WeightsFile, ...] = ()

    def __init__(self, encoder: Callable[[], TextEncoder] | None) -> None:
        self._build = encoder

    @functools.cached_property
    def _encoder(self) -> TextEncoder | str:
        """The encoder, or one line that says why it cannot be used."""
        if self._build is None:
            return "no encoder is configured: use scoring=edit, with scoring.clip.checkpoint=FILE"
        try:
            return self._build()
        except InputError as error:
            return str(error)

    @property
    def version(self) -> str:
        """The encoder's name and the first 8 characters of its `weights_sha256`.

        It is "no encoder" if the encoder cannot be used.
        """
        if isinstance(self._encoder, str):
            return "no encoder"
        return f"{self._encoder.name} {self._encoder.weights_sha256[:8]}"

    def unavailable(self) -> str | None:
        """Return None if the encoder can be used, else one line that says why not.

        The first call builds the encoder.
        """
        return self._encoder if isinstance(self._encoder, str) else None

    @torch.no_grad()
    def score(self, x_hat: Tensor, x: Tensor | None = None, prompt: str | None = None) -> Tensor:
        """Return (B,) float64 similarities of (B, 3, H, W) images in [0, 1] to one prompt.

        Raises:
            ValueError: if the shape is not (B, 3, H, W), or a value is outside [0, 1].
            InputError: if the encoder or the prompt is missing.
        """
        require_unit(x_hat, self.name)
        if isinstance(self._encoder, str):
            raise InputError(f"{self.name}: {self._encoder}")
        if prompt is None:
            raise InputError(f"{self.name} compares with a prompt, and none was given")
        # 2 x - 1 of an 8-bit level k / 255 may leave [-1, 1] by rounding.
        images = (2 * x_hat - 1).clamp(-1, 1)
        vectors = torch.cat([self._encoder.image(image[None]) for image in images]).double()
        return vectors @ self._encoder.text([prompt])[0].double()
