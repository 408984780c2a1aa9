"""Latent backbones: the x4 upscaler and the inpainting model of Stable Diffusion.

Stable Diffusion is by Rombach et al. (2022). The models are loaded from a local diffusers folder.
Adaptation fine-tunes the UNet, which is the backbone's `network`, and leaves VAE and text encoder
unchanged. Latents are multiplied by the VAE's scaling factor, as the UNet expects them. The losses
and the UNet's inputs in training follow the configuration files with which Stability and CompVis
trained the networks.
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
    load_scheduler,
    load_tokenizer,
    require_folder,
)
from adir.backbones.execution import Execution, recompute
from adir.diffusion.posterior import diffuse
from adir.diffusion.schedule import schedule_from_betas
from adir.diffusion.velocity import eps_of_velocity, velocity
from adir.errors import InputError
from adir.files import sha256_of_bytes, warn_in_one_line
from adir.weights.checkpoint import read_config
from adir.weights.model_folder import load_model, weights_file
from adir.weights.registry import located

PREDICTIONS = ("epsilon", "v_prediction")
GRADIENT_TILE = 256
"""The side in pixels of the VAE's tiles while gradients are computed through the decoder.

A gradient through the x4 upscaler's decoder takes 1.6 GB at 256 pixels and 25.9 GB at 1024. Both
numbers are counted from tensor sizes.
"""
FAMILIES = {
    7: "the x4 upscaler (backbone=sd_x4)",
    9: "an inpainting model (backbone=sd_inpaint)",
    4: "text to image",
}


@dataclass(frozen=True)
class Condition:
    """Inputs of the UNet besides the latents z_t and the timesteps t, for a batch of images."""

    channels: Tensor
    """The image channels (B, C, h, w) that are concatenated to z_t."""
    text: Tensor
    """The text embeddings (B, L, D) for the UNet's cross-attention."""
    class_labels: Tensor | None = None
    """Labels (B,) int64 whose embeddings are added to the time embedding, or None.

    The x4 upscaler takes the noise level of the low-resolution image as the label.
    """


class StableDiffusion:
    """Latent backbone from a Stable Diffusion folder.

    This is the base class of `StableDiffusionX4` and `StableDiffusionInpaint`.

    Args:
        name: name in paths and tables. With None, it is the class attribute `usual`.
        folder: folder in diffusers' layout. With None, it is the folder of `checkpoint`.
        checkpoint: name of an entry in conf/weights/, used if `folder` is None. With None, it is
            `usual`.
        resolution: side in pixels of the training images; other sizes work.
        vae_tile: largest side in pixels that the VAE processes in one piece. A larger image is
            processed in overlapping tiles of this side, which limits memory. With None, the VAE
            processes every image in one piece.
        device: where the network runs; overrides the device in `execution`.
        execution: precision and other settings.
        trained_on: name of the training images, to be saved with the results.

    Raises:
        InputError: if the folder contains another model, or if `vae_tile` is not a multiple of 4
            times `stride`.

    Tiles save memory. For the x4 upscaler, whose weights take 2.1 GB, decoding an image of
    1024x1024 pixels takes another 3.2 GB in one piece, or 0.8 GB in tiles of 512 pixels. These
    numbers are counted from tensor sizes with torch's fused attention. Without fused attention, the
    attention matrix between 65,536 positions alone would take 17 GB.

    Tiles also change the image considerably, because norms and attention are computed per tile. The
    effect was measured with untrained weights, in this architecture with an eighth of the channels:
    an image of 512x512 pixels decoded in tiles of 256 differs from the image decoded in one piece
    by 0.6 to 1 standard deviations of the image. It has not been measured with trained weights.

    By default, diffusers tiles images larger than the `sample_size` in the VAE's config.json. For
    the upscaler this is 256 pixels, and the paper's images of 1024x1024 pixels would be cut into 36
    tiles. The default of `vae_tile`, 1024, decodes them in one piece.
    """

    kind: ClassVar[Kind] = "latent"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    family: ClassVar[str]
    learns_variance: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    channels: ClassVar[int]
    """The number of input channels of the UNet, which differs between the families."""
    usual: ClassVar[str]
    """The default name, and the default entry of conf/weights/."""

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
        # Check the folder before the weights are loaded.
        require_folder(self.folder, self.parts)
        found: Any = read_config(self.folder / "unet" / "config.json").get("in_channels")
        if found != self.channels:
            raise InputError(
                f"backbone={self.name}: the UNet in {self.folder} has {found} input channels "
                f"instead of {self.channels}, so it is "
                f"{FAMILIES.get(found, 'of an unknown family')}, not {FAMILIES[self.channels]}"
            )
        self.network: Any = self.execution.prepare(
            load_model(self.folder / "unet", UNet2DConditionModel)
        )
        self.vae: Any = load_model(self.folder / "vae", AutoencoderKL).to(self.device)
        self.vae.enable_slicing()  # one image at a time: saves memory, same pixels
        self.vae_tile = vae_tile
        unit = 4 * self.stride  # tiles overlap by a quarter, which must be whole latent positions
        if vae_tile is not None and (vae_tile < unit or vae_tile % unit):
            raise InputError(
                f"backbone={self.name}: vae_tile={vae_tile} must be a multiple of {unit}, or null"
            )
        recompute_in_backward(self.vae.decoder)
        # The text model stays on the CPU in float32, where a call takes negligible time. This saves
        # up to 1.4 GB of GPU memory (the 340 M parameters of Stable Diffusion 2's text model).
        self.text_model = load_model(self.folder / "text_encoder", CLIPTextModel)
        self.tokenizer = load_tokenizer(self.folder / "tokenizer")
        self._embeddings: dict[str, Tensor] = {}
        self.scheduler: Any = load_scheduler(self.folder / "scheduler")
        if self.scheduler.config.prediction_type not in PREDICTIONS:
            raise InputError(
                f"{self.folder / 'scheduler'}: "
                f"prediction_type={self.scheduler.config.prediction_type!r} must be "
                f"{' or '.join(PREDICTIONS)}"
            )
        self.schedule = schedule_from_betas(
            self.scheduler.betas.double().cpu(), torch.arange(len(self.scheduler.betas))
        )
        # Hash weights and settings, which are part of a cell's identity.
        weights = [weights_file(self.folder / part)[0] for part in ("unet", "vae", "text_encoder")]
        self.weights_sha256 = hash_of_files(self.folder, weights)
        self.config_sha256 = hash_of_settings(self.folder, self.parts)
        self._complete()

    def _complete(self) -> None:
        """Load additional parts that a subclass needs; called at the end of the constructor."""

    @property
    def stride(self) -> int:
        """The height of an image in pixels divided by the height of its latent; same for widths.

        An image's height and width must be multiples of this number. Latents may have any size.
        """
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """The number of channels of a latent."""
        return self.vae.config.latent_channels

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the latent shape (C, H / stride, W / stride) of an image (3, H, W)."""
        return self.latent_channels, image_shape[-2] // self.stride, image_shape[-1] // self.stride

    @torch.no_grad()
    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode images to scaled latents (B, C, H / stride, W / stride).

        Args:
            image: (B, 3, H, W) in [-1, 1].
            noise: standard normal noise in the shape of the latents, for sampling the VAE's
                posterior. With None, the latents are the posterior's mean.
        """
        self._set_tile(self.vae_tile)
        with torch.autocast(self.device.type, enabled=False):  # in float16 this VAE overflows
            posterior = self.vae.encode(image.float()).latent_dist
        latent = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return latent * self.vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Decode scaled latents to images (B, 3, H, W), approximately in [-1, 1].

        The result is differentiable. If gradients are enabled, `latent` requires a gradient and
        `vae_tile` is set, the sides of the tiles are at most GRADIENT_TILE (256) pixels.
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
        """Set the side in pixels of the VAE's tiles; None processes an image in one piece."""
        self.vae.use_tiling = tile is not None
        if tile is not None:
            self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = tile, tile // self.stride

    def text(self, prompts: list[str]) -> Tensor:
        """Return the text embeddings (B, L, D) of B prompts, on the backbone's device."""
        return torch.cat([self._embedding(prompt) for prompt in prompts]).to(self.device)

    @torch.no_grad()
    def _embedding(self, prompt: str) -> Tensor:
        """Return the hidden states (1, L, D) of the text model's last layer, computed once.

        L is the tokenizer's maximum length (77). A longer prompt is truncated, as in diffusers'
        pipelines, and a warning quotes the ignored words.
        """
        if prompt not in self._embeddings:
            length = self.tokenizer.model_max_length
            whole = self.tokenizer(prompt)["input_ids"]
            if len(whole) > length:
                lost = self.tokenizer.decode(whole[length - 1 : -1])
                warn_in_one_line(
                    f"prompt truncated to its first {length - 2} tokens; ignored: {lost!r}"
                )
            words = self.tokenizer(
                prompt,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            masked = getattr(self.text_model.config, "use_attention_mask", False)
            mask = words.attention_mask if masked else None
            self._embeddings[prompt] = self.text_model(words.input_ids, attention_mask=mask)[0]
        return self._embeddings[prompt]

    def output(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the UNet's raw output (B, C, h, w), which is eps or v.

        Args:
            z_t: latents (B, C, h, w) of the variance-preserving process, as in DDPM.
            t: timesteps (B,), or one timestep for all latents.
            condition: the UNet's other inputs.
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
        """Return the predicted noise in z_t, computed from the UNet's raw output (eps or v)."""
        return eps_of_velocity(z_t, output, alpha_bar) if self.predicts_velocity else output

    @torch.no_grad()
    def predict(self, z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        """Predict the noise in latents z_t (B, C, h, w) at timesteps t (B,), without gradients."""
        if self.gate is not None:
            self.gate(t)
        alpha_bar = self.schedule.alpha_bar.to(z_t)[t].reshape(-1, 1, 1, 1)
        return Prediction(self.eps_of(self.output(z_t, t, condition), z_t, alpha_bar), None)

    @property
    def predicts_velocity(self) -> bool:
        """True if the UNet predicts v, False if it predicts eps."""
        return self.scheduler.config.prediction_type == "v_prediction"

    def denoising_loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean squared error of the UNet's prediction (eps or v) over a batch.

        batch: collated training examples from adir.adaptation.latent.latent_crops.
        """
        z = self.encode(batch["z"], batch["posterior_noise"])
        alpha_bar = self.schedule.alpha_bar.to(z.device)[batch["t"]].reshape(-1, 1, 1, 1)
        eps = batch["eps"]
        z_t = diffuse(z, eps, alpha_bar).to(z.dtype)  # alpha_bar is float64, the network float32
        target = velocity(z, eps, alpha_bar).to(z.dtype) if self.predicts_velocity else eps
        output = self.output(z_t, batch["t"], self.condition_of(batch))
        return torch.nn.functional.mse_loss(output, target)

    def condition_of(self, example: dict[str, Any]) -> Condition:
        """Return the condition that a batch of collated training examples describes."""
        raise NotImplementedError


class StableDiffusionX4(StableDiffusion):
    """Stable Diffusion's x4 upscaler, which predicts v.

    Besides z_t and t, the UNet takes the low-resolution image with added noise, the level of this
    noise, and a prompt.
    """

    parts = (*StableDiffusion.parts, "low_res_scheduler")
    family, channels, usual = "upscaler", 7, "sd_x4"

    def _complete(self) -> None:
        self.low_res_scheduler: Any = load_scheduler(self.folder / "low_res_scheduler")
        # The config.json of early copies of this VAE misses the scaling factor. We set it in all
        # cases, as diffusers' pipeline does.
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
        """Add noise to low-resolution images, and return the condition made of them and prompts.

        Args:
            low: low-resolution images (B, 3, h, w) in [-1, 1].
            noise: standard normal noise (B, 3, h, w).
            noise_level: (B,) int64, the timestep of `low_res_scheduler` whose noise is added.
            prompts: B prompts.
        """
        noised = self.low_res_scheduler.add_noise(low, noise, noise_level)
        return Condition(noised, self.text(prompts), noise_level)

    def condition_of(self, example: dict[str, Any]) -> Condition:
        return self.condition(
            example["low"], example["low_noise"], example["noise_level"], example["prompt"]
        )


class StableDiffusionInpaint(StableDiffusion):
    """Stable Diffusion's inpainting model, which predicts eps or v.

    Besides z_t and t, the UNet takes the mask of the hole, the latent of the image in which the
    hole is mid grey, and a prompt.
    """

    family, channels, usual = "inpainting", 9, "sd_inpaint"

    def _complete(self) -> None:
        # Early copies have other values of two scheduler settings. We replace them, as diffusers'
        # pipeline does when it loads them.
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
        """Return the condition made of masks, latents of the images with holes, and prompts.

        Args:
            image: images (B, 3, H, W) in [-1, 1].
            hole: masks (B, 1, H, W), 1 where the image is repainted and 0 elsewhere.
            noise: standard normal noise (B, C, h, w) in the shape of the latents, for sampling the
                VAE's posterior.
            prompts: B prompts.
        """
        _, _, h, w = noise.shape
        # Nearest neighbour interpolation, as in the pipeline and in training.
        small = torch.nn.functional.interpolate(hole, size=(h, w))
        masked = self.encode(image * (hole < 0.5), noise)
        return Condition(torch.cat([small, masked], dim=1), self.text(prompts))

    def condition_of(self, example: dict[str, Any]) -> Condition:
        return self.condition(
            example["z"], example["hole"], example["masked_noise"], example["prompt"]
        )


def recompute_in_backward(module: Any) -> None:
    """Make a module recompute its activations in the backward pass instead of storing them.

    If the module is called once per tile, the activations of only one tile are in memory at a time.
    """
    forward = module.forward

    def called(*arguments: Any) -> Any:
        return recompute(forward, *arguments) if torch.is_grad_enabled() else forward(*arguments)

    module.forward = called
