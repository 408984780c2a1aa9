"""Pixel backbones whose network is a `diffusers.UNet2DModel`.

The network is an ADM (Dhariwal and Nichol, 2021) or any other UNet2DModel that was trained as a
DDPM. The default network is the embedded prior, which ships with the package and is small enough
for a CPU.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adir.backbones.adm.architecture import Flags
from adir.backbones.adm.cached import CONFIG, WEIGHTS, converted
from adir.backbones.adm.conversion import build_network
from adir.backbones.base import Kind, Prediction, Variance
from adir.backbones.execution import Execution
from adir.backbones.process import GUIDED_DIFFUSION, read_process
from adir.diffusion.posterior import diffuse, epsilon_loss
from adir.errors import InputError
from adir.files import read_json, sha256_of_bytes
from adir.weights.cache import known_sha256
from adir.weights.checkpoint import read_checkpoint
from adir.weights.registry import hub_snapshot, located

if TYPE_CHECKING:
    from diffusers import UNet2DModel

PICKLED = "diffusion_pytorch_model.bin"
"""The weights file of a folder without safetensors, written by torch.save.

It is read with weights_only=True.
"""
TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w+)?")
OLD_ATTENTION = re.compile(rf"\.({'|'.join(TODAY)})\.")
"""The regular expression for names of attention layers in diffusers before version 0.17.

The weights of google/ddpm-* still have these names. TODAY maps each to its present name.
"""
EMBEDDED_PRIOR = Path(__file__).parent.parent / "embedded" / "prior"


class GuidedDiffusion:
    """Pixel backbone from a diffusers folder or from a checkpoint file of guided-diffusion.

    A diffusers folder contains config.json and the weights, diffusion_pytorch_model.safetensors or
    .bin. A checkpoint file is converted once to such a folder, which is cached.

    The noise schedule, the number of timesteps and the predicted quantity are read from a file
    scheduler_config.json in the folder, in its subfolder scheduler/, or in a folder scheduler/
    beside it. Without this file, the schedule is linear with 1000 timesteps and the network
    predicts the noise, as in guided-diffusion.

    Weights may be float16 on disk. In memory they are float32, mapped from the file if possible.

    The settings that identify a result include a hash of the weights and a hash of the
    configuration. A hash of the weights alone would miss a wrong setting that fits the same
    tensors, such as norm_eps.

    Args:
        name: name in paths and tables.
        folder: path of the network's folder, of a pipeline with the network in unet/, or of a
            checkpoint file. If there is no such path, OWNER/NAME or OWNER/NAME@COMMIT means a
            repository on the Hugging Face hub. With None, `checkpoint` is used.
        checkpoint: name of an entry in conf/weights/, used if `folder` is None. If it is also None,
            the embedded prior is used.
        architecture: flags of the network, used for a checkpoint file only.
        resolution: side in pixels of the training images; other sizes work.
        variance: variance Sigma that suits the network: `learned` if the network predicts a
            variance (6 output channels), else `small` (beta tilde) or `large` (beta).
        device: where the network runs; overrides the device in `execution`.
        execution: precision and other settings.
        trained_on: name of the training images, to be saved with the results.

    Raises:
        InputError: if a file is missing, if the configuration is not supported, or if `variance` is
            `learned` and the network predicts no variance. If the weights are damaged, the error
            is raised later, when `network` is first accessed.
    """

    kind: ClassVar[Kind] = "pixel"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    family: ClassVar[str] = "guided_diffusion"

    def __init__(
        self,
        name: str = "embedded",
        folder: str | Path | None = None,
        checkpoint: str | None = None,
        architecture: Flags | None = None,
        resolution: int = 64,
        variance: Variance = "small",
        device: str = "cpu",
        execution: Execution | None = None,
        trained_on: str | None = None,
    ):
        self.name = name
        self.resolution = resolution
        self.trained_on = trained_on
        self.gate: Callable[[Tensor], None] | None = None
        self.execution = dataclasses.replace(execution or Execution(), device=device)
        self.device = torch.device(device)
        # Find the source: a folder, a checkpoint file, a repository on the hub, or the prior.
        if folder is not None:
            on_hub = HUB_ID.fullmatch(str(folder)) and not Path(folder).exists()
            source = (
                hub_snapshot(str(folder), ("*config.json", f"*{WEIGHTS}", f"*{PICKLED}"))
                if on_hub
                else Path(folder)
            )
        else:
            source = EMBEDDED_PRIOR if checkpoint is None else located(checkpoint)
        # Find the network's folder and its weights file.
        if source.is_file():
            self.folder, self.weights_sha256 = converted(source, architecture or Flags())
            self._weights = self.folder / WEIGHTS
        else:
            in_pipeline = not (source / CONFIG).is_file() and (source / "unet" / CONFIG).is_file()
            self.folder = source / "unet" if in_pipeline else source
            pickled = (self.folder / PICKLED).is_file() and not (self.folder / WEIGHTS).is_file()
            self._weights = self.folder / (PICKLED if pickled else WEIGHTS)
        settings = read_settings(self.folder / CONFIG, self._weights)
        if not source.is_file():
            self.weights_sha256 = known_sha256(self._weights)
        self.config_sha256 = known_sha256(self.folder / CONFIG)
        self.process = read_process(self.folder)
        self.schedule = self.process.schedule
        # Under guided-diffusion's process the hash is that of the file alone, so cells from before
        # other processes were supported keep their identity.
        if self.process.sha256 != GUIDED_DIFFUSION.sha256:
            self.config_sha256 = sha256_of_bytes(
                f"{self.config_sha256} {self.process.sha256}".encode()
            )
        self.learns_variance = settings["out_channels"] == 6
        # The factor by which the network reduces height and width: 2 from each level to the next,
        # multiplied by the setting "unshuffle".
        halvings = len(settings["block_out_channels"]) - 1
        self.stride = int(settings.get("unshuffle", 1) * 2**halvings)
        self.variance = variance
        if (variance == "learned") and not self.learns_variance:
            raise InputError(
                f"backbone={name}: variance=learned, but the network predicts no variance; use "
                "variance=small or variance=large"
            )

    @functools.cached_property
    def network(self) -> Any:
        """The UNet2DModel, loaded and prepared for `device` at first access.

        The first access raises InputError if `load_network` does.
        """
        return self.execution.prepare(load_network(self.folder / CONFIG, self._weights))

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Predict the noise in x_t, and the variance fraction if the network learns its variance.

        On a CPU, the images of a batch are processed one at a time. The result for an image is then
        the same bit for bit in any batch. With oneDNN's batched convolutions it would differ by
        1e-6. Speed is unaffected: with one thread, 7 to 9 images of 128x128 pixels are processed
        per second in batches of 1, 4 and 8.

        Args:
            x_t: (B, 3, H, W). If it requires a gradient, the result is differentiable.
            t: (B,) int64 timesteps of the training schedule, from 0 to its last (usually 999).

        Raises:
            InputError: if H or W is not a multiple of `stride`.
        """
        height, width = x_t.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"backbone {self.name} takes images whose sides are multiples of {self.stride}, "
                f"got {width}x{height}: crop them, or restore them in tiles (adir restore)"
            )
        if self.gate is not None:
            self.gate(t)
        parts = (
            zip(x_t.split(1), t.split(1), strict=True) if self.device.type == "cpu" else [(x_t, t)]
        )
        with (
            self.execution.autocast(),
            torch.set_grad_enabled(torch.is_grad_enabled() and x_t.requires_grad),
        ):
            outputs = [self.network(x, s, return_dict=False)[0] for x, s in parts]
        # float32, because the samplers' arithmetic on eps would lose too many digits in bfloat16.
        found = self.prediction(torch.cat(outputs).float())
        return self.process.as_noise(x_t, t, found)

    def prediction(self, output: Tensor) -> Prediction:
        """Split the network's raw output (B, 3 or 6, H, W) into eps and variance_fraction.

        The field `eps` holds the quantity that the network was trained to predict: the noise, the
        velocity or the clean image. `process.as_noise` converts it to the noise.
        """
        if not self.learns_variance:
            return Prediction(output, None)
        eps, v = output.chunk(2, dim=1)
        return Prediction(eps, (v + 1) / 2)

    def denoising_loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the loss of DDPM, the mean of (eps - eps_theta(z_t, t))^2 over a batch.

        batch: (z, t, eps) from `NoisyCrops` (adir.adaptation.crops): clean crops, timesteps, noise.
        """
        z, t, eps = batch
        alpha_bar = self.schedule.alpha_bar.to(z.device)[t].reshape(-1, 1, 1, 1)
        z_t = diffuse(z, eps, alpha_bar).to(z.dtype)  # alpha_bar is float64, the network float32
        with self.execution.autocast():
            output = self.network(z_t, t, return_dict=False)[0]
        return epsilon_loss(
            eps, self.process.as_noise(z_t, t, self.prediction(output.float())).eps
        ).mean()


def load_network(config: Path, weights: Path) -> "UNet2DModel":
    """Load a UNet2DModel on the CPU, in float32, in eval mode and frozen.

    Float32 weights in a safetensors file are memory-mapped. They take no memory before they are
    used, and processes share this memory. A process that writes to the weights changes only its own
    copy.

    Args:
        config: path of config.json.
        weights: path of the weights, a safetensors file or a file of torch.save.

    Raises:
        InputError: if `read_settings` raises it, or if the weights are damaged or do not fit the
            configuration.
    """
    settings = read_settings(config, weights)
    try:
        network = build_network(settings)
        tensors = (
            load_file(weights) if weights.suffix == ".safetensors" else read_checkpoint(weights)
        )
    # diffusers raises the last three for a wrong configuration.
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise damaged(config, error) from error
    tensors = {
        OLD_ATTENTION.sub(lambda old: f".{TODAY[old[1]]}.", key): tensor
        for key, tensor in tensors.items()
    }
    expected = network.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[key].shape) if key in expected else "missing"
        have = tuple(tensors[key].shape) if key in tensors else "missing"
        if want != have:
            raise InputError(
                f"{weights}: the tensors do not fit {config.name} ({key} is {have} in the file, "
                f"but {want} in the network)"
            )
    network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def read_settings(config: Path, weights: Path) -> dict[str, Any]:
    """Return the settings in a network's config.json.

    Raises InputError if config.json or the weights are missing, or if config.json is damaged or
    describes an unsupported network.
    """
    for path in (config, weights):
        if not path.is_file():
            if (pipeline := path.parent / "model_index.json").is_file():
                raise InputError(
                    f"{pipeline}: the folder is a pipeline of diffusers; give the folder of a "
                    "pixel network"
                )
            raise InputError(
                f"{path}: no such file; a backbone's folder must contain {CONFIG} and {WEIGHTS}"
            )
    try:
        settings = read_json(config)
        # diffusers would take a string for the name of a model to download.
        if not isinstance(settings, dict):
            raise TypeError(f"{config.name} contains no JSON object")
        made_by = settings.get("_class_name", "UNet2DModel")
        lacking = {"out_channels", "block_out_channels"} - settings.keys()
        if made_by == "UNet2DModel" and lacking:
            raise ValueError(f"{config.name} lacks {', '.join(sorted(lacking))}")
    except (ValueError, TypeError) as error:
        raise damaged(config, error) from error
    if made_by != "UNet2DModel":
        raise InputError(
            f"{config}: describes a {made_by}, but this backbone takes a UNet2DModel; give another "
            "folder or backbone"
        )
    channels = settings.get("in_channels", 3), settings["out_channels"]
    if channels not in ((3, 3), (3, 6)):
        raise InputError(
            f"{config}: the network has {channels[0]} input channels and {channels[1]} output "
            "channels; give a network for RGB images, with 3 input and 3 or 6 output channels"
        )
    if settings.get("class_embed_type") is not None or settings.get("num_class_embeds") is not None:
        raise InputError(
            f"{config}: class-conditional networks are not supported, because "
            "backbones get no class labels; give an unconditional network"
        )
    return settings


def damaged(config: Path, error: Exception) -> InputError:
    """Return the error for a damaged backbone, with the message of `error` on one line."""
    return InputError(
        f"{config.parent}: damaged backbone ({' '.join(str(error).split())}); "
        "download the folder again"
    )
