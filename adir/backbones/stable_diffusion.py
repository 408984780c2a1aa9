"""Stable Diffusion (Rombach et al., 2022) as parts: the x4 upscaler and the inpainting model, from
a local diffusers folder.

The UNet is `network`, what adaptation tunes; VAE and text encoder stay as they are. Latents carry
the VAE's scaling factor, as the UNet sees them. Which data and losses the networks were trained
with is theirs (Stability's and CompVis's configs).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from adir.backbones.base import Kind, Prediction
from adir.backbones.diffusers_folder import (
    hash_of_files,
    hash_of_settings,
    load_part,
    load_scheduler,
    load_tokenizer,
    read_config,
    require_folder,
    weights_file,
)
from adir.backbones.execution import Execution, recompute
from adir.backbones.prompts import PromptEncoder
from adir.diffusion.posterior import diffuse
from adir.diffusion.schedule import schedule_from_betas
from adir.diffusion.velocity import eps_of_velocity, velocity
from adir.errors import InputError
from adir.files import sha256_of_bytes
from adir.weights.registry import located

PREDICTIONS = ("epsilon", "v_prediction")
GRADIENT_TILE = 256
"""Side in pixels of the VAE's tiles while a gradient is taken through it.

The gradient through the x4 upscaler's decoder takes 1.6 GB at 256 pixels and 25.9 GB at 1024,
counted from its tensors.
"""
FAMILIES = {
    7: "the x4 upscaler (backbone=sd_x4)",
    9: "an inpainting model (backbone=sd_inpaint)",
    4: "text to image",
}


@dataclass(frozen=True)
class Condition:
    """What the UNet is told besides z_t and t, one row per image."""

    channels: Tensor
    """(B, C, h, w), concatenated to z_t."""
    text: Tensor
    """(B, L, D), attended to."""
    class_labels: Tensor | None = None
    """(B,) int64, added to the time embedding."""

    def with_text(self, text: Tensor) -> "Condition":
        """The same image under another prompt."""
        return Condition(self.channels, text, self.class_labels)


class StableDiffusion:
    """What the two families share.

    folder: in diffusers' layout; None is what `checkpoint`, an entry of conf/weights/, has.
        resolution: side in pixels of
    the images it was trained for; other sizes work.  device: where it runs, whatever `execution`
    says of that.
    trained_on: for the record.
    vae_tile: the side in pixels up to which the VAE takes an image whole; larger ones pass it in
        overlapping tiles of that
    side, which bounds memory; None: never in tiles. By count, decoding 1024x1024 whole takes 3.2 GB
    beside the 2.1 GB of the x4 upscaler's weights, and tiles of 512 take 0.8 GB (with torch's fused
    attention: as a matrix, that between 65,536 places would take 17 GB). diffusers' own tiles begin
    above `sample_size` of the VAE's config.json, 256 pixels in the upscaler's, so they would cut
    the paper's 1024x1024 into 36. They are no small change: norms and attention see one tile only.
    Decoding 512x512 in tiles of 256 strays from the whole by 0.6 to 1 of the image's standard
    deviation with untrained weights (this architecture, an eighth of the channels); by how much
    with the trained ones is not measured. Raises InputError for a folder that is not such a model,
    and for a tile that the VAE cannot take.
    """

    kind: ClassVar[Kind] = "latent"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its predictions."""
    family: ClassVar[str]
    learns_variance: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    channels: ClassVar[int]
    """Channels that the UNet takes: what tells the families apart."""
    usual: ClassVar[str]
    """The name and the entry of conf/weights/ where none is given."""

    def __init__(
        self,
        name: str | None = None,
        folder: str | Path | None = None,
        checkpoint: str | None = None,
        resolution: int = 512,
        vae_tile: int | None = 1024,
        device: str = "cpu",
        execution: Execution | None = None,
        trained_on: str | None = None,
    ) -> None:
        self.name = self.usual if name is None else name
        entry = self.usual if checkpoint is None else checkpoint
        self.folder = located(entry) if folder is None else Path(folder)
        self.resolution = resolution
        self.trained_on = trained_on
        self.gate: Callable[[Tensor], None] | None = None
        self.execution = dataclasses.replace(execution or Execution(), device=device)
        self.device = torch.device(device)
        require_folder(self.folder, self.parts)
        self._require_family()
        self.network: Any = self.execution.prepare(
            load_part(self.folder / "unet", UNet2DConditionModel)
        )
        self.vae: Any = load_part(self.folder / "vae", AutoencoderKL).to(self.device)
        self.vae.enable_slicing()  # one image at a time: the same pixels
        self.vae_tile = vae_tile
        unit = 4 * self.stride  # tiles overlap by a quarter, in whole places
        if vae_tile is not None and (vae_tile < unit or vae_tile % unit):
            raise InputError(
                f"backbone={self.name}: vae_tile={vae_tile}: a multiple of {unit} is needed, "
                "or null"
            )
        recompute_in_backward(self.vae.decoder)
        text_model = load_part(self.folder / "text_encoder", CLIPTextModel)
        self.embed = PromptEncoder(load_tokenizer(self.folder / "tokenizer"), text_model)
        self.scheduler: Any = load_scheduler(self.folder / "scheduler")
        if self.scheduler.config.prediction_type not in PREDICTIONS:
            raise InputError(
                f"{self.folder / 'scheduler'}: "
                f"prediction_type={self.scheduler.config.prediction_type!r}; "
                f"{' or '.join(PREDICTIONS)} is needed"
            )
        self.schedule = schedule_from_betas(
            self.scheduler.betas.double().cpu(), torch.arange(len(self.scheduler.betas))
        )
        weights = [weights_file(self.folder / part)[0] for part in ("unet", "vae", "text_encoder")]
        self.weights_sha256 = hash_of_files(self.folder, weights)
        self.config_sha256 = hash_of_settings(self.folder, self.parts)
        self._complete()

    def _complete(self) -> None:
        """What a family has besides."""

    def _require_family(self) -> None:
        """Before the weights are read: a config.json is enough to tell."""
        found: Any = read_config(self.folder / "unet" / "config.json").get("in_channels")
        if found != self.channels:
            raise InputError(
                f"backbone={self.name}: the UNet in {self.folder} takes {found} channels, "
                f"{self.channels} are needed: "
                f"it is {FAMILIES.get(found, 'of a family not known here')}, not "
                f"{FAMILIES[self.channels]}"
            )

    @property
    def stride(self) -> int:
        """Height and width of an image must be multiples of this: pixels a side of one latent
        place. (The UNet itself takes latents of any size.)
        """
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.vae.config.latent_channels

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(C, H / stride, W / stride) of an image (3, H, W)."""
        return self.latent_channels, image_shape[-2] // self.stride, image_shape[-1] // self.stride

    @torch.no_grad()
    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, H / stride, W / stride) of images (B, 3, H, W) in [-1, 1].

        noise: standard normal of the latents' shape, for a sample of the VAE's posterior; None
            takes its mean.
        """
        self._set_tile(self.vae_tile)
        with torch.autocast(self.device.type, enabled=False):  # in float16 this VAE overflows
            posterior = self.vae.encode(image.float()).latent_dist
        latent = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return latent * self.vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of latents; differentiable, then in tiles of
        GRADIENT_TILE.
        """
        tile = self.vae_tile
        if tile is not None and torch.is_grad_enabled() and latent.requires_grad:
            tile = min(tile, GRADIENT_TILE)
        self._set_tile(tile)
        with torch.autocast(self.device.type, enabled=False):
            return self.vae.decode(
                latent.float() / self.vae.config.scaling_factor, return_dict=False
            )[0]

    def _set_tile(self, tile: int | None) -> None:
        """Let the VAE's next call take tiles of so many pixels a side, or the image whole."""
        self.vae.use_tiling = tile is not None
        if tile is not None:
            self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = tile, tile // self.stride

    def text(self, prompts: list[str]) -> Tensor:
        """(B, L, D) embeddings of prompts, on the device."""
        return torch.cat([self.embed(prompt) for prompt in prompts]).to(self.device)

    def output(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The UNet's raw output (B, C, h, w): eps or v. z_t: variance preserving, as in DDPM; t:

        (B,) or scalar.
        """
        with self.execution.autocast():
            return self.network(
                torch.cat([z_t, condition.channels], dim=1),
                t,
                encoder_hidden_states=condition.text,
                class_labels=condition.class_labels,
                return_dict=False,
            )[0].float()

    def eps_of(self, output: Tensor, z_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """The predicted noise in z_t, of the raw output."""
        return eps_of_velocity(z_t, output, alpha_bar) if self.predicts_velocity else output

    @torch.no_grad()
    def predict(self, z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        """The noise in z_t (B, C, h, w) at timesteps t (B,)."""
        if self.gate is not None:
            self.gate(t)
        alpha_bar = self.schedule.alpha_bar.to(z_t)[t].reshape(-1, 1, 1, 1)
        return Prediction(self.eps_of(self.output(z_t, t, condition), z_t, alpha_bar), None)

    @property
    def predicts_velocity(self) -> bool:
        """Whether the UNet predicts v; else eps."""
        return self.scheduler.config.prediction_type == "v_prediction"

    def denoising_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean squared error of the UNet's eps or v on a batch of this family's `LatentCrops`
        (adir.adaptation.latent).
        """
        z = self.encode(batch["z"], batch["posterior_noise"])
        alpha_bar = self.schedule.alpha_bar.to(z.device)[batch["t"]].reshape(-1, 1, 1, 1)
        eps = batch["eps"]
        z_t = diffuse(z, eps, alpha_bar).to(z.dtype)  # float64 tables, float32 network
        target = velocity(z, eps, alpha_bar).to(z.dtype) if self.predicts_velocity else eps
        output = self.output(z_t, batch["t"], self.condition_of(batch))
        return torch.nn.functional.mse_loss(output, target)

    def condition_of(self, example: dict[str, Any]) -> Condition:
        """The condition of a training example."""
        raise NotImplementedError


class StableDiffusionX4(StableDiffusion):
    """The x4 upscaler: z_t and the low-resolution image, noised to a level that the network is
    told, to v.
    """

    parts = (*StableDiffusion.parts, "low_res_scheduler")
    family, channels, usual = "upscaler", 7, "sd_x4"

    def _complete(self) -> None:
        self.low_res_scheduler: Any = load_scheduler(self.folder / "low_res_scheduler")
        # Early copies of its VAE lack the factor; diffusers' pipeline sets it, whatever the file
        # says, and so do we.
        self.vae.register_to_config(scaling_factor=0.08333)
        index = self.folder / "model_index.json"
        self.max_noise_level: int = (
            read_config(index).get("max_noise_level", 350) if index.is_file() else 350
        )
        self.config_sha256 = sha256_of_bytes(
            f"{self.config_sha256} {self.max_noise_level}".encode()
        )

    def condition(
        self, low: Tensor, noise: Tensor, noise_level: Tensor, prompts: list[str]
    ) -> Condition:
        """low, noise: (B, 3, h, w), the small image in [-1, 1] and standard normal.  noise_level:
        (B,) int64.
        """
        noised = self.low_res_scheduler.add_noise(low, noise, noise_level)
        return Condition(noised, self.text(prompts), noise_level)

    def condition_of(self, example: dict[str, Any]) -> Condition:
        return self.condition(
            example["low"], example["low_noise"], example["noise_level"], example["prompt"]
        )


class StableDiffusionInpaint(StableDiffusion):
    """The inpainting model: z_t, the hole, and the latent of the image with the hole at mid grey,
    to eps or v.
    """

    family, channels, usual = "inpainting", 9, "sd_inpaint"

    def _complete(self) -> None:
        # Early copies have older settings of the scheduler; diffusers' pipeline changes them on
        # loading, and so do we.
        old = {"steps_offset": 1, "skip_prk_steps": True}
        current = {
            key: value
            for key, value in old.items()
            if self.scheduler.config.get(key, value) != value
        }
        self.scheduler = type(self.scheduler).from_config(self.scheduler.config, **current)

    def condition(
        self, image: Tensor, hole: Tensor, noise: Tensor, prompts: list[str]
    ) -> Condition:
        """image: (B, 3, H, W) in [-1, 1].  hole: (B, 1, H, W), 1 where it is to be repainted.
        noise: of a latent's shape.
        """
        _, _, h, w = noise.shape
        small = torch.nn.functional.interpolate(
            hole, size=(h, w)
        )  # nearest, as the pipeline and the training do
        masked = self.encode(image * (hole < 0.5), noise)
        return Condition(torch.cat([small, masked], dim=1), self.text(prompts))

    def condition_of(self, example: dict[str, Any]) -> Condition:
        return self.condition(
            example["z"], example["hole"], example["masked_noise"], example["prompt"]
        )


def recompute_in_backward(module: Any) -> None:
    """Keep none of the insides of each call for a backward pass, but compute them again: of tiles,
    one tile's at a time.
    """
    forward = module.forward

    def called(*arguments: Any) -> Any:
        return recompute(forward, *arguments) if torch.is_grad_enabled() else forward(*arguments)

    module.forward = called
