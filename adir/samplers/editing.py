"""Editing with Stable Diffusion's inpainting model, as diffusers' pipeline does it."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from adir.backbones.stable_diffusion import StableDiffusionInpaint
from adir.samplers.base import Adaptation, Restoration, Watch, draw_noise, one_by_one
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
    """Text-guided editing with `StableDiffusionInpaint`: mask and prompt ride on the operator
    (adir.tasks.editing).

    n_steps: paper: 50 for Stable Diffusion.  guidance_scale, negative_prompt: of classifier-free
        guidance (Ho and Salimans,
    2022); 7.5 is the default of diffusers' pipeline.  eta: of DDIM; 0 is deterministic.  paste: put
    the known pixels back into the result; on the authors' page they are not.
    """

    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    name: str = "sd_inpaint"
    n_steps: int = 50
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    eta: float = 0.0
    paste: bool = False

    def __post_init__(self) -> None:
        require_options(self.n_steps, self.guidance_scale, self.eta)

    def restore(
        self,
        backbone: StableDiffusionInpaint,
        operator: EditOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """x_hat (B, 3, H, W), about [-1, 1], from y (B, 3, H, W), 0 in the hole; one image at a
        time.

        Raises InputError for values outside [-1, 1].
        """
        require_range(y, self.name)
        restore_one = partial(self._restore_one, backbone, operator)
        return one_by_one(restore_one, y, generators)

    @torch.no_grad()
    def _restore_one(
        self,
        backbone: StableDiffusionInpaint,
        operator: EditOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        watch = Watch(y)
        shape = backbone.latent_shape(operator.image_shape)
        noise = draw_noise(shape, generators, y)
        masked_noise = draw_noise(shape, generators, y)
        hole = operator.hole.to(y)[None, None]
        condition = backbone.condition(y, hole, masked_noise, [operator.prompt])
        away = unconditional_text(
            backbone, operator.prompt, self.negative_prompt, self.guidance_scale
        )
        options = self.guidance_scale, self.n_steps, self.eta
        latent, evaluations = sample_latent(
            backbone, noise, condition, away, *options, generators[0], watch
        )
        x_hat = backbone.decode(latent)
        if self.paste:
            x_hat = torch.where(hole > 0, x_hat, y)
        return watch.finish(x_hat, REMEDY, evaluations)

    def not_applicable(self, backbone: Any, task: Task, mode: Adaptation) -> str | None:
        """A one-line reason why this sampler cannot do a cell; None where it can."""
        if backbone.family != "inpainting":
            return (
                f"sampler {self.name} is for an inpainting model (backbone=sd_inpaint), not "
                f"for backbone {backbone.name}"
            )
        if not task.edits:
            return (
                f"sampler {self.name} needs a mask and a prompt (task=edit), which task "
                f"{task.name} has not"
            )
        if mode.on_y:
            return "adaptation=self would teach the network the hole of y: use knn, or none"
        return starts_too_high(backbone, self.n_steps)
