"""DPS and DDRM as deepinv has them, on our backbone and our y: only the denoiser and the noise are
ours.

deepinv works on images in [0, 1] with noise of standard deviation sigma in the same units, and
draws noise for whole batches from a global generator. `BackboneDenoiser` and `ImageNoise` are the
two adapters; everything between is a call of the library, which tests compare with the same call
made by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import deepinv
import numpy as np
import torch
from deepinv.physics import GaussianNoise
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adir.backbones.base import Backbone, Denoiser
from adir.samplers.base import (
    Adaptation,
    Restoration,
    Watch,
    in_unit_range,
    needs_pixels,
    noise_level,
    one_by_one,
    require_steps,
)
from adir.samplers.svd import as_physics, full_svd, has_full_svd
from adir.tasks.base import Task
from adir.tasks.operators import Operator

Guidance = Literal["norm", "annealed"]


class BackboneDenoiser(deepinv.models.Denoiser):
    """A backbone as a deepinv denoiser:

    E[x | x + sigma n] of images in [0, 1], itself clamped to [0, 1].

    x + sigma n in [0, 1] is, in [-1, 1] and scaled to unit variance, x_t of alpha_bar = 1 / (1 + 4
    sigma^2); the network is asked at the t whose noise is nearest, as deepinv's DiffUNet is. x0_hat
    is clipped to [-1, 1], as there. The result has the type of x; the network sees float32.
    Gradients flow to x.  evaluations: calls so far, and of those gradient_evaluations through which
    a gradient flows.
    """

    def __init__(self, backbone: Denoiser) -> None:
        super().__init__()
        self.backbone = backbone
        self.evaluations = self.gradient_evaluations = 0

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        """x: (B, 3, H, W); sigma: a number, or a tensor of one element or of B."""
        self.evaluations += 1
        self.gradient_evaluations += torch.is_grad_enabled() and x.requires_grad
        alpha_bar = self.backbone.schedule.alpha_bar.to(x.device)
        # deepinv hands numbers, arrays' entries and tensors of one element over; float64, as 1 -
        # alpha_bar cancels.
        std = 2 * torch.as_tensor(sigma, dtype=torch.float64, device=x.device).reshape(-1, 1, 1, 1)
        noise = (std / (1 + std**2).sqrt()).reshape(-1, 1)
        t = ((1 - alpha_bar).sqrt() - noise).abs().argmin(1)
        noisy = 2 * x - 1
        x_t = (noisy / (1 + std**2).sqrt()).float()
        eps = self.backbone.predict(
            x_t, self.backbone.schedule.timesteps.to(x.device)[t].expand(len(x))
        ).eps
        x0_hat = (noisy - std * eps).clamp(-1, 1)
        return ((x0_hat + 1) / 2).to(x.dtype)


class ImageNoise(TorchFunctionMode):
    """While active, what draws normal noise draws it from one CPU generator, and moves it to where
    it is wanted.

    So a library's result depends on the image's generator alone, the same on every device, and the
    global generator is left as it was.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Stands in for torch.randn_like, Tensor.normal_ and torch.randn; everything else passes."""
        kwargs = kwargs or {}
        if func is torch.randn_like:
            return self._draw(args[0].shape, args[0].dtype, args[0].device)
        if func is torch.Tensor.normal_:
            return args[0].copy_(self._draw(args[0].shape, args[0].dtype, args[0].device))
        if func is torch.randn:
            shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            return self._draw(shape, kwargs.get("dtype"), kwargs.get("device"))
        return func(*args, **kwargs)

    def _draw(self, shape: Any, dtype: torch.dtype | None, device: Any) -> Tensor:
        # Inside __torch_function__ the mode is off, so this is torch's own randn.
        return torch.randn(tuple(shape), generator=self.generator, dtype=dtype).to(device)


def restored_by(
    make: Callable[[BackboneDenoiser], Callable[[Tensor], Tensor]],
    backbone: Denoiser,
    operator: Operator,
    y: Tensor,
    generators: list[torch.Generator],
    remedy: str,
) -> Restoration:
    """x_hat of y (B, C, h, w) by a sampler of deepinv.

    make: the sampler for a denoiser: from y (1, C, h, w) of an image in [0, 1] to that image.
    """

    def restore_one(y: Tensor, generators: list[torch.Generator]) -> Restoration:
        denoiser = BackboneDenoiser(backbone)
        sampler = make(denoiser)
        with ImageNoise(generators[0]):
            x = sampler(in_unit_range(operator, y))
        return Watch(y).finish(
            2 * x - 1, remedy, denoiser.evaluations, denoiser.gradient_evaluations
        )

    return one_by_one(restore_one, y, generators)


@dataclass(frozen=True)
class DPS:
    """Diffusion posterior sampling (Chung et al., 2023), by deepinv.sampling.DPS with its DDPM
    solver.

    n_steps: solver steps; each is one evaluation of the network and one backpropagation through it.
    guidance: `norm` differentiates |y - A x0_hat| as the paper does, and weight is its step size,
        of no common scale; `annealed` differentiates |y - A x0_hat|^2 / (2 (sigma_y^2 +
        sigma_t^2)), where the uncertainty of A x0_hat is rather |A|^2 sigma_t^2: its weight is in
        units of 1 / |A|^2 (16 for super-resolution x4), and 1 fits any task.
    """

    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    name: str = "dps"
    n_steps: int = 1000
    weight: float = 1.0
    guidance: Guidance = "norm"

    def __post_init__(self) -> None:
        require_steps(self.n_steps)
        if self.guidance not in get_args(Guidance):
            raise ValueError(
                f"unknown guidance {self.guidance!r}; choose one of {', '.join(get_args(Guidance))}"
            )

    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per image."""
        weight = self.weight if self.guidance == "norm" else self.weight / operator.norm**2
        physics = as_physics(operator.build(torch.float32).to(y.device))
        physics.set_noise_model(GaussianNoise(noise_level(operator)).to(y.device))

        def make(denoiser: BackboneDenoiser) -> Callable[[Tensor], Tensor]:
            sampler = deepinv.sampling.DPS(
                denoiser,
                num_steps=self.n_steps + 1,  # deepinv counts times, of which the last is 0
                weight=weight,
                guidance=self.guidance,
                device=y.device,
            )
            return partial(sampler, physics=physics, x_init=(1, *operator.image_shape))

        return restored_by(make, backbone, operator, y, generators, "lower weight")

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Any linear task on pixels."""
        return needs_pixels(self.name, backbone, task)


@dataclass(frozen=True)
class DDRM:
    """Denoising diffusion restoration models (Kawar et al., 2022), by deepinv.sampling.DDRM.

    n_steps: noise levels, evenly from 1 to 0 of images in [0, 1]; each is one evaluation of the
        network.
    eta, etab: the paper's eta and eta_b, deepinv's defaults.
    deepinv divides the noise it adds by sqrt(2), which is right where the coefficients are
    Fourier's, in two parts; for real ones (super-resolution, colorization, inpainting) it adds that
    much less than it tells the denoiser.
    """

    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    name: str = "ddrm"
    n_steps: int = 100
    eta: float = 0.85
    etab: float = 1.0

    def __post_init__(self) -> None:
        require_steps(self.n_steps)

    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """x_hat from y (B, C, h, w), one CPU generator per image."""
        physics = full_svd(operator, torch.float32, y.device, noise_level(operator))

        def make(denoiser: BackboneDenoiser) -> Callable[[Tensor], Tensor]:
            sigmas = np.linspace(1, 0, self.n_steps)
            return partial(
                deepinv.sampling.DDRM(denoiser, sigmas, self.eta, self.etab), physics=physics
            )

        return restored_by(make, backbone, operator, y, generators, "change n_steps or eta")

    def not_applicable(self, backbone: Backbone, task: Task, mode: Adaptation) -> str | None:
        """Pixels, and an operator whose singular value decomposition is known."""
        return needs_pixels(self.name, backbone, task) or needs_svd(self.name, backbone, task)


def needs_svd(name: str, backbone: Backbone, task: Task) -> str | None:
    """The reason for which a sampler that works on singular values leaves out a task."""
    if has_full_svd(task.operator((3, backbone.resolution, backbone.resolution)).physics):
        return None
    return (
        f"sampler {name} needs the singular value decomposition of A, and task {task.name} has none"
    )
