"""Diffusion process of a diffusers UNet2DModel, read from scheduler_config.json."""

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
    require_betas,
    scaled_linear_betas,
    schedule_from_betas,
)
from adir.diffusion.velocity import eps_of_velocity
from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.weights.checkpoint import read_config

SCHEDULER = "scheduler_config.json"
TRAINED_AS_DDPM = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
"""The diffusers schedulers whose configuration describes the training of a DDPM.

All of them have the same defaults for settings that the file omits.
"""
Predicts = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Process:
    """Schedule with which a network was trained, and the quantity that the network predicts.

    `predicts` is `epsilon` for the noise, `v_prediction` for the velocity, and `sample` for the
    clean image.
    """

    schedule: Schedule
    predicts: Predicts = "epsilon"

    @property
    def sha256(self) -> str:
        """A hash of `predicts` and the betas, so equal processes have the same hash."""
        return sha256_of_bytes(json.dumps([self.predicts, self.schedule.betas.tolist()]).encode())

    def as_noise(self, x_t: Tensor, t: Tensor, found: Prediction) -> Prediction:
        """Convert a network's prediction to a prediction of the noise.

        Args:
            x_t: noisy images, (B, 3, H, W).
            t: (B,) timesteps.
            found: the network's prediction, with the quantity that `predicts` names in the field
                `eps`.

        Returns:
            A prediction with the noise in the field `eps` and the same `variance_fraction`.
        """
        if self.predicts == "epsilon":
            return found
        alpha_bar = self.schedule.alpha_bar.to(x_t.device)[t].reshape(-1, 1, 1, 1)
        if self.predicts == "v_prediction":
            eps = eps_of_velocity(x_t, found.eps, alpha_bar)
        else:
            eps = (x_t - alpha_bar.sqrt() * found.eps) / (1 - alpha_bar).sqrt()
        # The tables of the schedule are float64, and the network is float32.
        return Prediction(eps.to(x_t.dtype), found.variance_fraction)


GUIDED_DIFFUSION = Process(linear_schedule(1000))
"""The process of guided-diffusion, also used for a folder without a scheduler_config.json."""


def read_process(folder: Path) -> Process:
    """Return the process described by the scheduler_config.json of a network's folder.

    The file is looked for in the folder, in its subfolder scheduler/, and in a folder scheduler/
    beside it. If there is none, the process is guided-diffusion's: a linear schedule with 1000
    timesteps, and a network that predicts the noise.

    Raises InputError if the file is damaged, or if its scheduler, schedule or prediction type is
    not supported.
    """
    places = (
        folder / SCHEDULER,
        folder / "scheduler" / SCHEDULER,
        folder.parent / "scheduler" / SCHEDULER,
    )
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return GUIDED_DIFFUSION
    settings = read_config(path)
    if (name := settings.get("_class_name")) not in TRAINED_AS_DDPM:
        raise InputError(
            f"{path}: scheduler {name} is not supported; choose a network trained as DDPM, whose "
            f"scheduler is one of {', '.join(TRAINED_AS_DDPM)}"
        )
    if settings.get("rescale_betas_zero_snr"):
        raise InputError(
            f"{path}: rescale_betas_zero_snr is not supported, because x_t at the last timestep "
            "contains nothing of the image; choose another network"
        )
    predicts = settings.get("prediction_type", "epsilon")
    if predicts not in get_args(Predicts):
        raise InputError(
            f"{path}: prediction_type {predicts!r} is not supported; "
            f"it must be one of {', '.join(get_args(Predicts))}"
        )
    return Process(read_schedule(path, settings), predicts)


def read_schedule(path: Path, settings: dict[str, Any]) -> Schedule:
    """Return the noise schedule that a scheduler's settings describe.

    Args:
        path: path of scheduler_config.json, for the error message.
        settings: content of this file.

    Raises:
        InputError: if the schedule is unknown or a beta is not in (0, 1).
    """
    kind = settings.get("beta_schedule", "linear")
    try:
        n = settings.get("num_train_timesteps", 1000)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"num_train_timesteps={n!r} must be a whole number of at least 1")
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
                f"beta_schedule {kind!r} must be linear, scaled_linear or squaredcos_cap_v2"
            )
        if betas.ndim != 1:
            raise ValueError("trained_betas must be a list of numbers")
        return schedule_from_betas(require_betas(betas), torch.arange(len(betas)))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: unsupported diffusion process ({' '.join(str(error).split())})"
        ) from error
