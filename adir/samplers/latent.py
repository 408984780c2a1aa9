"""Sampling loop for Stable Diffusion, and the sampler for its x4 upscaler.

The loop serves the x4 upscaler and the inpainting model. It uses the same random numbers in the
same order as diffusers' pipelines. With the same weights, steps and seed, it therefore gives the
same result.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adir.backbones.stable_diffusion import Condition, StableDiffusion, StableDiffusionX4
from adir.checks import require_not_negative, require_unit_interval, require_whole
from adir.diffusion.posterior import predict_x0
from adir.diffusion.velocity import velocity
from adir.errors import InputError
from adir.samplers.base import (
    Adaptation,
    Restoration,
    StepCounter,
    draw_noise,
    separately,
)
from adir.tasks.base import LinearOperator, Task

Correction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Function from (raw network output, z_t, alpha_bar_t, t) to a corrected network output."""


REMEDY = "lower the guidance, or run the network in float32"


@torch.no_grad()
def sample_latent(
    backbone: StableDiffusion,
    noise: Tensor,
    condition: Condition,
    unconditional: Tensor | None,
    guidance_scale: float,
    n_steps: int,
    eta: float,
    generator: torch.Generator,
    watch: StepCounter,
    correct: Correction | None = None,
) -> tuple[Tensor, int]:
    """Return (latent, number of network evaluations), sampled with the backbone's scheduler.

    Args:
        backbone: the latent denoiser and its scheduler.
        noise: (1, C, h, w), standard normal, from which sampling starts.
        condition: the network's condition for one image.
        unconditional: (1, L, D) embedding of the text that classifier-free guidance leads away
            from. None switches guidance off, and a step then counts as one network evaluation
            instead of two.
        guidance_scale: scale of classifier-free guidance.
        n_steps: number of sampling steps.
        eta: eta of DDIM; schedulers without eta ignore it.
        generator: source of the scheduler's noise.
        watch: counter of the steps.
        correct: function that changes the network's output at each step; None leaves the output as
            it is.
    """
    scheduler = scheduler_of(backbone, n_steps)
    taken = inspect.signature(scheduler.step).parameters
    options = {
        name: value for name, value in (("eta", eta), ("generator", generator)) if name in taken
    }
    latent = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        z_t = scheduler.scale_model_input(latent, t)
        t_network = t.to(z_t.device)
        if unconditional is None:
            output = backbone.output(z_t, t_network, condition)
        else:
            # Both texts form one batch, unconditional first, as in the pipelines. This saves a call
            # and gives the same rounding as the pipelines.
            away, towards = backbone.output(
                torch.cat([z_t, z_t]), t_network, batch_with_unconditional(condition, unconditional)
            ).chunk(2)
            output = away + guidance_scale * (towards - away)
        if correct is not None:
            # The nearest integer, because some schedulers use fractional timesteps.
            output = correct(output, z_t, backbone.schedule.alpha_bar[int(t.round())], t)
        latent = scheduler.step(output, t, latent, **options, return_dict=False)[0]
        watch.step(latent)
    # Not n_steps, because some schedulers take one step more than requested.
    return latent, len(scheduler.timesteps) * (1 if unconditional is None else 2)


def scheduler_of(backbone: StableDiffusion, n_steps: int) -> Any:
    """Return a new scheduler, configured as the backbone's and set to n_steps steps."""
    scheduler = type(backbone.scheduler).from_config(backbone.scheduler.config)
    scheduler.set_timesteps(n_steps)
    return scheduler


def starts_too_high(backbone: StableDiffusion, n_steps: int) -> str | None:
    """Return why the backbone's scheduler cannot take n_steps steps, or None if it can.

    With many steps, the scheduler's offset can put its first timestep beyond the network's last
    one. The result is also None if n_steps exceeds the length of the schedule, because the harness
    refuses such an n_steps itself.
    """
    known = len(backbone.schedule)
    if n_steps > known or scheduler_of(backbone, n_steps).timesteps.max() < known:
        return None
    return (
        f"n_steps={n_steps} is too many for the {type(backbone.scheduler).__name__} of backbone "
        f"{backbone.name}: use fewer than {known}"
    )


def batch_with_unconditional(condition: Condition, unconditional: Tensor) -> Condition:
    """Return a batch of two conditions of one image that differ only in the text.

    The first has the text embedding `unconditional` (1, L, D), the second the text of `condition`.
    """
    labels = condition.class_labels
    return Condition(
        torch.cat([condition.channels] * 2),
        torch.cat([unconditional, condition.text]),
        None if labels is None else torch.cat([labels] * 2),
    )


def require_options(n_steps: Any, guidance_scale: float, eta: float) -> None:
    """Raise ValueError unless n_steps, guidance_scale and eta are in range."""
    require_whole(1, n_steps=n_steps)
    if not 1 <= guidance_scale < math.inf:
        raise ValueError(
            f"guidance_scale={guidance_scale!r}: must be at least 1; 1 means no classifier-free "
            "guidance"
        )
    require_unit_interval(eta=eta)


def unconditional_text(
    backbone: StableDiffusion, prompt: str, negative_prompt: str, guidance_scale: float
) -> Tensor | None:
    """Return the embedding (1, L, D) of negative_prompt, or None if guidance changes nothing.

    negative_prompt is the text that classifier-free guidance leads away from. The guided output is
    a + s (b - a), where s is guidance_scale, a is the output for negative_prompt, and b is the
    output for prompt. It equals b if s = 1 or if the two prompts are equal.
    """
    unchanged = guidance_scale == 1 or prompt == negative_prompt
    return None if unchanged else backbone.text([negative_prompt])


@dataclass(frozen=True)
class UpscalerSampler:
    """Sampler for super-resolution x4 with `StableDiffusionX4`.

    y is the small image. The operator A is used only if measurement_scale is above 0.

    Attributes:
        n_steps: sampling steps; the paper uses 50 for Stable Diffusion.
        guidance_scale: scale of classifier-free guidance (Ho and Salimans, 2022).
        prompt: text that guidance leads to. The paper's prompt is unknown. With the default, no
            prompt, guidance has no effect.
        negative_prompt: text that guidance leads away from.
        noise_level: level of the noise that is added to y before the network sees y. It is a
            timestep of the network's noise schedule for y, and the network also receives it. The
            default of diffusers' pipeline is 20.
        eta: eta of DDIM; 0 is deterministic.
        measurement_scale: step size of a gradient descent step on ||A D(z0_hat) - y||, which
            changes z0_hat at each sampling step (DPS, Chung et al., 2023, in latents). The gradient
            passes through the decoder D but not through the UNet. 0 disables the gradient descent
            step. Whether the paper used it is unknown.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "sd_x4"
    n_steps: int = 50
    guidance_scale: float = 9.0
    prompt: str = ""
    negative_prompt: str = ""
    noise_level: int = 20
    eta: float = 0.0
    measurement_scale: float = 0.0

    def __post_init__(self) -> None:
        require_options(self.n_steps, self.guidance_scale, self.eta)
        require_whole(0, noise_level=self.noise_level)
        require_not_negative(measurement_scale=self.measurement_scale)

    @separately
    @torch.no_grad()
    def restore(
        self,
        backbone: StableDiffusionX4,
        operator: LinearOperator,
        y: Tensor,
        generators: list[torch.Generator],
    ) -> Restoration:
        """Return x_hat (B, 3, 4 h, 4 w), given y (B, 3, h, w).

        The values of x_hat are in about [-1, 1]. Images are restored one at a time.

        Raises:
            InputError: if y has values outside [-1, 1], or if the network does not support
                noise_level.
        """
        require_range(y, self.name)
        if self.noise_level > backbone.max_noise_level:
            raise InputError(
                f"noise_level={self.noise_level}: backbone {backbone.name} accepts levels from 0 "
                f"to {backbone.max_noise_level}"
            )
        watch = StepCounter(y)
        low_noise = draw_noise(tuple(y.shape[1:]), generators, y)
        noise = draw_noise(backbone.latent_shape(operator.image_shape), generators, y)
        level = torch.tensor([self.noise_level], device=y.device)
        condition = backbone.condition(y, low_noise, level, [self.prompt])
        correct = self._towards(backbone, operator, y) if self.measurement_scale else None
        away = unconditional_text(backbone, self.prompt, self.negative_prompt, self.guidance_scale)
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
            correct,
        )
        return watch.finish(backbone.decode(latent), REMEDY, evaluations)

    def _towards(
        self, backbone: StableDiffusionX4, operator: LinearOperator, y: Tensor
    ) -> Correction:
        """Return a function that changes the network's output to move z0_hat towards y.

        z0_hat is the clean latent that follows from the output. It takes one gradient step, while
        z_t does not change.
        """

        def correct(output: Tensor, z_t: Tensor, alpha_bar: Tensor, t: Tensor) -> Tensor:
            z0_hat = predict_x0(z_t, backbone.eps_of(output, z_t, alpha_bar), alpha_bar)
            moved = z0_hat - self.measurement_scale * residual_gradient(
                backbone, operator, z0_hat, y
            )
            eps = (z_t - alpha_bar.sqrt() * moved) / (1 - alpha_bar).sqrt()
            return velocity(moved, eps, alpha_bar) if backbone.predicts_velocity else eps

        return correct

    def not_applicable(self, backbone: Any, task: Task, mode: Adaptation) -> str | None:
        """Return one line on why these arguments are not supported, or None if they are."""
        if backbone.family != "upscaler":
            return (
                f"sampler {self.name} is for the x4 upscaler (backbone=sd_x4), not for "
                f"backbone {backbone.name}"
            )
        try:
            shape = task.image_shape((3, 64, 64))
        except InputError:
            shape = None
        if shape != (3, 64 * backbone.stride, 64 * backbone.stride):
            return (
                f"backbone {backbone.name} enlarges images {backbone.stride} times, which "
                f"task {task.name} does not need: use task=sr4"
            )
        return starts_too_high(backbone, self.n_steps)


def residual_gradient(
    backbone: StableDiffusion, operator: LinearOperator, z0: Tensor, y: Tensor
) -> Tensor:
    """Return the gradient of ||A D(z0) - y|| with respect to z0, through the decoder D.

    The result is shaped as z0. y is (B, C, h, w).
    """
    with torch.enable_grad():
        z0 = z0.detach().requires_grad_(True)
        residual = (operator.A(backbone.decode(z0)) - y).flatten(1).norm(dim=1).sum()
        return torch.autograd.grad(residual, z0)[0]


def require_range(image: Tensor, who: str) -> None:
    """Raise InputError unless all values of the image lie in [-1, 1]."""
    if not (image.min() >= -1 and image.max() <= 1):  # this form also refuses NaN
        low, high = image.min().item(), image.max().item()
        raise InputError(
            f"{who} takes images in [-1, 1], got values from {low:.3g} to {high:.3g}: scale the "
            "values"
        )
