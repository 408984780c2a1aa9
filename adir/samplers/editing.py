"""Editing with Stable Diffusion's inpainting model, equivalent to diffusers' pipeline."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adir.backbones.stable_diffusion import StableDiffusionInpaint
from adir.samplers.base import Adaptation, Restoration, StepCounter, draw_noise, separately
from adir.samplers.latent import (
    REMEDY,
    require_options,
    require_range,
    sample_latent,
    starts_too_high,
    unconditional_text,
)
from adir.tasks.base import Task
from adir.tasks.editing import EditOperator


@dataclass(frozen=True)
class InpaintingSampler:
    """Sampler for text-guided editing with `StableDiffusionInpaint`.

    The operator carries the mask and the prompt (adir.tasks.editing).

    Attributes:
        n_steps: sampling steps; the paper uses 50 for Stable Diffusion.
        guidance_scale: scale of classifier-free guidance (Ho and Salimans, 2022); the default of
            diffusers' pipeline is 7.5.
        negative_prompt: text that classifier-free guidance leads away from.
        eta: eta of DDIM; 0 is deterministic.
        paste: True copies the known pixels of y into the result. The results on the authors' web
            page are without this copy.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "sd_inpaint"
    n_steps: int = 50
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    eta: float = 0.0
    paste: bool = False

    def __post_init__(self) -> None:
        require_options(self.n_steps, self.guidance_scale, self.eta)

    @separately
    @torch.no_grad()
    def restore(
        self,
        backbone: StableDiffusionInpaint,
        operator: EditOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """Return x_hat (B, 3, H, W), given y (B, 3, H, W), which is 0 in the hole.

        The values of x_hat are in about [-1, 1]. Images are restored one at a time.

        Raises:
            InputError: if y has values outside [-1, 1].
        """
        require_range(y, self.name)
        watch = StepCounter(y)
        shape = backbone.latent_shape(operator.image_shape)
        noise = draw_noise(shape, generators, y)
        masked_noise = draw_noise(shape, generators, y)
        hole = operator.hole.to(y)[None, None]
        condition = backbone.condition(y, hole, masked_noise, [operator.prompt])
        away = unconditional_text(
            backbone, operator.prompt, self.negative_prompt, self.guidance_scale
        )
        latent, evaluations = sample_latent(
            backbone,
            noise,
            condition,
            away,
            self.guidance_scale,
            self.n_steps,
            self.eta,
            generators[0],
            watch,
        )
        x_hat = backbone.decode(latent)
        if self.paste:
            x_hat = torch.where(hole > 0, x_hat, y)
        return watch.finish(x_hat, REMEDY, evaluations)

    def not_applicable(self, backbone: Any, task: Task, mode: Adaptation) -> str | None:
        """Return one line on why these arguments are not supported, or None if they are."""
        if backbone.family != "inpainting":
            return (
                f"sampler {self.name} is for an inpainting model (backbone=sd_inpaint), not "
                f"for backbone {backbone.name}"
            )
        if not task.edits:
            return (
                f"sampler {self.name} needs a mask and a prompt, but task {task.name} has none: "
                "use task=edit"
            )
        if mode.on_y:
            return (
                "adaptation to y would teach the network the hole of y: "
                "use adaptation=knn or adaptation=none"
            )
        return starts_too_high(backbone, self.n_steps)
