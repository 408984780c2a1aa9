"""The diffusion process that a UNet2DModel of diffusers was trained with, read from its scheduler's
file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import (
    Schedule,
    cosine_betas,
    linear_betas,
    linear_schedule,
    scaled_linear_betas,
    schedule_from_betas,
)
from adir.diffusion.velocity import eps_of_velocity
from adir.errors import InputError
from adir.files import read_json, sha256_of_bytes

SCHEDULER = "scheduler_config.json"
TRAINED_AS_DDPM = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
"""Schedulers of diffusers whose file says how a DDPM was trained, with the same defaults for what
it leaves out.
"""
Predicts = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Process:
    """The schedule that a network was trained with, and what it predicts: the noise, the velocity,
    or the clean image.
    """

    schedule: Schedule
    predicts: Predicts = "epsilon"

    @property
    def sha256(self) -> str:
        """Of all that changes a prediction; equal for files that say the same in other words."""
        return sha256_of_bytes(json.dumps([self.predicts, self.schedule.betas.tolist()]).encode())

    def as_noise(self, x_t: Tensor, t: Tensor, found: Prediction) -> Prediction:
        """Return the prediction with the noise in x_t (B, 3, H, W) at timesteps t (B,) for what the
        network predicts.
        """
        if self.predicts == "epsilon":
            return found
        alpha_bar = self.schedule.alpha_bar.to(x_t.device)[t].reshape(-1, 1, 1, 1)
        if self.predicts == "v_prediction":
            eps = eps_of_velocity(x_t, found.eps, alpha_bar)
        else:
            eps = (x_t - alpha_bar.sqrt() * found.eps) / (1 - alpha_bar).sqrt()
        return Prediction(
            eps.to(x_t.dtype), found.variance_fraction
        )  # float64 tables, float32 network


GUIDED_DIFFUSION = Process(linear_schedule(1000))
"""Of guided-diffusion, and of a folder without a scheduler's file."""


def read_process(folder: Path) -> Process:
    """Return the process of a network's folder: from the scheduler's file in it, in scheduler/
    inside it or beside it.

    Raises InputError, in one line, for a scheduler, schedule or prediction that is not DDPM's, and
    for a damaged file.
    """
    places = (
        folder / SCHEDULER,
        folder / "scheduler" / SCHEDULER,
        folder.parent / "scheduler" / SCHEDULER,
    )
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return GUIDED_DIFFUSION
    try:
        settings = read_json(path)
    except ValueError as error:
        raise InputError(
            f"{path}: damaged ({' '.join(str(error).split())}); fetch it again"
        ) from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds no JSON object; fetch it again")
    if (name := settings.get("_class_name")) not in TRAINED_AS_DDPM:
        raise InputError(
            f"{path}: a {name}; a network trained as DDPM has one of {', '.join(TRAINED_AS_DDPM)}"
        )
    if settings.get("rescale_betas_zero_snr"):
        raise InputError(
            f"{path}: rescale_betas_zero_snr leaves nothing of the image at the last step: not "
            "supported"
        )
    predicts = settings.get("prediction_type", "epsilon")
    if predicts not in get_args(Predicts):
        raise InputError(
            f"{path}: prediction_type {predicts!r}; one of {', '.join(get_args(Predicts))} "
            "is needed"
        )
    return Process(
        schedule_from_betas(betas := read_betas(path, settings), torch.arange(len(betas))), predicts
    )


def read_betas(path: Path, settings: dict[str, Any]) -> Tensor:
    """Return the betas (n,) float64, each in (0, 1), of a scheduler's settings.

    Raises InputError for others.
    """
    kind = settings.get("beta_schedule", "linear")
    try:
        n = settings.get("num_train_timesteps", 1000)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"num_train_timesteps {n!r}")
        ends = (float(settings.get("beta_start", 1e-4)), float(settings.get("beta_end", 0.02)))
        if settings.get("trained_betas") is not None:
            betas = torch.tensor(settings["trained_betas"], dtype=torch.float64)
        elif kind == "linear":
            betas = linear_betas(n, *ends)
        elif kind == "scaled_linear":
            betas = scaled_linear_betas(n, *ends)
        elif kind == "squaredcos_cap_v2":
            betas = cosine_betas(n)
        else:
            raise ValueError(
                f"beta_schedule {kind!r}; linear, scaled_linear or squaredcos_cap_v2 is needed"
            )
        if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas that are not between 0 and 1")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not a process that is known here: {' '.join(str(error).split())}"
        ) from error
    return betas
