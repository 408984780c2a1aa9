"""DPS and DDRM of deepinv, called with the backbones and measurements of this package.

deepinv's images are in [0, 1], and its noise levels refer to this range. deepinv draws the noise of
a whole batch from the global generator. `BackboneDenoiser` wraps a backbone as a deepinv denoiser,
and `ImageNoise` draws an image's noise from the image's own generator. Everything else is a call of
the library. Tests compare the results with the same calls made by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import deepinv
import numpy as np
import torch
from deepinv.physics import GaussianNoise
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adir.backbones.base import Denoiser
from adir.checks import require_choice
from adir.samplers.base import (
    PixelSampler,
    Restoration,
    StepCounter,
    in_unit_range,
    noise_level,
    separately,
)
from adir.samplers.svd import SVDSampler, as_physics, full_svd
from adir.tasks.operators import Operator

Guidance = Literal["norm", "annealed"]


class BackboneDenoiser(deepinv.models.Denoiser):
    """deepinv denoiser that calls a backbone.

    Its input is x + sigma n, where x is an image in [0, 1] and n is standard normal noise. It
    returns an estimate of x, E[x | x + sigma n], clamped to [0, 1].

    For the network's x_t, the input is mapped to [-1, 1] and multiplied by sqrt(alpha_bar), where
    alpha_bar = 1 / (1 + 4 sigma^2). The network runs at the timestep with the nearest noise level,
    and x0_hat is clipped to [-1, 1]. deepinv's DiffUNet chooses the timestep and clips in the same
    way. The result has the dtype of the input, while the network sees float32. Gradients flow to
    the input.

    Attributes:
        evaluations: number of calls so far.
        gradient_evaluations: number of these calls through which a gradient flows.
    """

    def __init__(self, backbone: Denoiser) -> None:
        super().__init__()
        self.backbone = backbone
        self.evaluations = self.gradient_evaluations = 0

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        """Return the denoised x (B, 3, H, W).

        `sigma` is a number, or a tensor with one element or B elements.
        """
        self.evaluations += 1
        self.gradient_evaluations += torch.is_grad_enabled() and x.requires_grad
        alpha_bar = self.backbone.schedule.alpha_bar.to(x.device)
        # deepinv passes sigma as a number, as an array entry, or as a tensor with one element.
        # float64, because 1 - alpha_bar loses digits.
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

    def finish(self, x: Tensor, y: Tensor, remedy: str) -> Restoration:
        """Return the `Restoration` of y (1, C, h, w), given the restored image x in [0, 1].

        For `remedy` see `StepCounter.finish`.
        """
        return StepCounter(y).finish(2 * x - 1, remedy, self.evaluations, self.gradient_evaluations)


class ImageNoise(TorchFunctionMode):
    """Context manager under which torch draws normal noise from one CPU generator.

    The noise is drawn on the CPU and then moved to the requested device. A library's random numbers
    therefore depend only on the image's generator and are equal on every device. The global
    generator does not change.
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
        """Replace torch.randn_like, Tensor.normal_ and torch.randn; pass other calls on."""
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
        # The mode is inactive inside __torch_function__, so this calls torch's own randn.
        return torch.randn(tuple(shape), generator=self.generator, dtype=dtype).to(device)


@dataclass(frozen=True)
class DPS(PixelSampler):
    """Sampler for diffusion posterior sampling (Chung et al., 2023).

    It runs deepinv.sampling.DPS with deepinv's DDPM solver.

    Attributes:
        n_steps: solver steps. Each one costs one network evaluation and one backpropagation through
            the network.
        weight: weight of the guidance, in units that depend on `guidance`.
        guidance: the function that is differentiated, `norm` or `annealed`. `norm` is
            |y - A x0_hat|, as in the paper. Its weight is a step size, whose best value differs
            from task to task. `annealed` is |y - A x0_hat|^2 / (2 (sigma_y^2 + sigma_t^2)). Its
            weight is in units of 1 / |A|^2, which is 16 for super-resolution x4. In these units a
            weight of 1 fits any task, because the variance of A x0_hat is closer to |A|^2 sigma_t^2
            than to the sigma_t^2 of the formula.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "dps"
    n_steps: int = 1000
    weight: float = 1.0
    guidance: Guidance = "norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("guidance", self.guidance, get_args(Guidance))

    @separately
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image."""
        weight = self.weight if self.guidance == "norm" else self.weight / operator.norm**2
        physics = as_physics(operator.build(torch.float32).to(y.device))
        physics.set_noise_model(GaussianNoise(noise_level(operator)).to(y.device))

        denoiser = BackboneDenoiser(backbone)
        sampler = deepinv.sampling.DPS(
            denoiser,
            num_steps=self.n_steps + 1,  # deepinv counts times, and the last time is 0
            weight=weight,
            guidance=self.guidance,
            device=y.device,
        )
        with ImageNoise(generators[0]):
            x = sampler(in_unit_range(operator, y), physics, x_init=(1, *operator.image_shape))
        return denoiser.finish(x, y, "lower weight")


@dataclass(frozen=True)
class DDRM(SVDSampler):
    """Sampler for denoising diffusion restoration models (Kawar et al., 2022), run by deepinv.

    deepinv.sampling.DDRM divides the noise that it adds by sqrt(2). This is right for Fourier
    coefficients, which have a real and an imaginary part. Super-resolution, colorization and
    inpainting have real coefficients. For them the added noise is sqrt(2) times lower than the
    noise level that the denoiser receives.

    Attributes:
        n_steps: number of noise levels, each with one network evaluation. The levels are evenly
            spaced from 1 to 0, for images in [0, 1].
        eta: the paper's eta; the default is deepinv's.
        etab: the paper's eta_b; the default is deepinv's.
    """

    version: ClassVar[int] = 1
    """The class version. Raise it whenever a change of this class alters its results."""
    name: str = "ddrm"
    n_steps: int = 100
    eta: float = 0.85
    etab: float = 1.0

    @separately
    def restore(
        self, backbone: Denoiser, operator: Operator, y: Tensor, generators: list[torch.Generator]
    ) -> Restoration:
        """Return the restoration of y (B, C, h, w), given one CPU generator per image."""
        physics = full_svd(operator, torch.float32, y.device, noise_level(operator))
        denoiser = BackboneDenoiser(backbone)
        sigmas = np.linspace(1, 0, self.n_steps)
        sampler = deepinv.sampling.DDRM(denoiser, sigmas, self.eta, self.etab)
        with ImageNoise(generators[0]):
            x = sampler(in_unit_range(operator, y), physics)
        return denoiser.finish(x, y, "change n_steps or eta")
