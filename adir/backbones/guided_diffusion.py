"""Pixel denoisers that are a `diffusers.UNet2DModel`:

ADM (Dhariwal and Nichol, 2021), and any trained as a DDPM.

The prior that ships with the package is one such network, small enough for a CPU.
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
"""Weights as torch.save wrote them, where a folder has no safetensors; read with weights_only=True.
"""
TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w+)?")
OLD_ATTENTION = re.compile(rf"\.({'|'.join(TODAY)})\.")
"""What diffusers called the layers of attention before 0.17, as the weights of google/ddpm-* still
do.
"""
EMBEDDED_PRIOR = Path(__file__).parent.parent / "embedded" / "prior"


class GuidedDiffusion:
    """A pixel-space denoiser, from a diffusers folder (config.json,
    diffusion_pytorch_model.safetensors) or from a checkpoint file of guided-diffusion, which is
    converted once and kept.

    Schedule, number of steps and what the network predicts are read from scheduler_config.json, in
    the folder or in scheduler/ inside it or beside it; without one they are guided-diffusion's:
    linear, 1000, the noise.

    Args:
        name: in paths and tables.
        folder: of the network, or of a pipeline with it in unet/; or a checkpoint file; or, where
            there is no such path, OWNER/NAME of the Hugging Face hub, OWNER/NAME@COMMIT for one
            that stays as it is. None: what `checkpoint` names.
        checkpoint: an entry of conf/weights/; None is the embedded prior.
        architecture: the network's flags, for a checkpoint file only.
        resolution: side in pixels of the images it was trained on; other sizes work.
        variance: the Sigma that goes with this network, `learned` where it predicts one (6 output
            channels), else `small` (beta tilde) or `large` (beta).
        device: where it runs, whatever `execution` says of that.
        execution: precision and the like.
        trained_on: for the record.

    Weights may be float16 on disk and are float32 in memory, mapped from the file where they can
    be. Those of the source are hashed, and so is the configuration (a wrong norm_eps fits the same
    tensors); both hashes are part of a cell's identity.  Raises InputError for what is missing, or
    no such model; damaged weights show when `network` is first used.
    """

    kind: ClassVar[Kind] = "pixel"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its predictions."""
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
        if folder is not None:
            on_hub = HUB_ID.fullmatch(str(folder)) and not Path(folder).exists()
            source = (
                hub_snapshot(str(folder), ("*config.json", f"*{WEIGHTS}", f"*{PICKLED}"))
                if on_hub
                else Path(folder)
            )
        else:
            source = EMBEDDED_PRIOR if checkpoint is None else located(checkpoint)
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
        if (
            self.process.sha256 != GUIDED_DIFFUSION.sha256
        ):  # a network under its usual process stays the cell it was
            self.config_sha256 = sha256_of_bytes(
                f"{self.config_sha256} {self.process.sha256}".encode()
            )
        self.learns_variance = settings["out_channels"] == 6
        self._halvings = len(settings["block_out_channels"]) - 1
        self._unshuffle = settings.get("unshuffle", 1)
        self.variance = variance
        if (variance == "learned") and not self.learns_variance:
            raise InputError(
                f"backbone={name}: variance=learned, but its network predicts none: use small "
                "or large"
            )

    @functools.cached_property
    def network(self) -> Any:
        """The UNet2DModel, ready to run; loaded when it is first asked for.

        Raises InputError as `load_network` does.
        """
        return self.execution.prepare(load_network(self.folder / CONFIG, self._weights))

    @property
    def stride(self) -> int:
        """Height and width of an image must be multiples of this: the network halves them once per
        level.
        """
        return int(self._unshuffle * 2**self._halvings)

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Noise in x_t (B, 3, H, W) at the original timesteps t (B,), int64 from 0 to the
        schedule's last, 999 of most; differentiable in an x_t that requires a gradient.

        On a CPU one image at a time: no slower (7 to 9 images of 128x128 a second on one thread, at
        batch 1, 4 and 8 alike), and bit-equal in any batch, where oneDNN's batched convolutions
        differ by 1e-6. Raises InputError for a size that the network cannot halve often enough.
        """
        height, width = x_t.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"backbone {self.name} takes images whose sides are multiples of {self.stride}, "
                f"got {width}x{height}: "
                "crop them, or restore them in tiles (adir restore)"
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
        found = self.prediction(
            torch.cat(outputs).float()
        )  # bfloat16 would lose the digits of eps in 1 - alpha_bar
        return self.process.as_noise(x_t, t, found)

    def prediction(self, output: Tensor) -> Prediction:
        """The network's raw output (B, 3 or 6, H, W), told apart; its eps is yet what the network
        predicts, see `process`.
        """
        if not self.learns_variance:
            return Prediction(output, None)
        eps, v = output.chunk(2, dim=1)
        return Prediction(eps, (v + 1) / 2)

    def denoising_loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """DDPM's mean of (eps - eps_theta(z_t, t))^2 over a batch (z, t, eps) of `NoisyCrops`
        (adir.adaptation.crops).
        """
        z, t, eps = batch
        alpha_bar = self.schedule.alpha_bar.to(z.device)[t].reshape(-1, 1, 1, 1)
        z_t = diffuse(z, eps, alpha_bar).to(z.dtype)  # float64 tables, float32 network
        with self.execution.autocast():
            output = self.network(z_t, t, return_dict=False)[0]
        return epsilon_loss(
            eps, self.process.as_noise(z_t, t, self.prediction(output.float())).eps
        ).mean()


def load_network(config: Path, weights: Path) -> "UNet2DModel":
    """UNet2DModel in eval mode, float32, from its configuration and safetensors file.

    Float32 weights are mapped from the file, not copied: they take no memory until they are used,
    and none twice. A write to them stays in this process. Raises InputError as `read_settings`
    does, and when the weights are damaged or one of their tensors does not fit the configuration.
    """
    settings = read_settings(config, weights)
    try:
        network = build_network(settings)
        tensors = (
            load_file(weights) if weights.suffix == ".safetensors" else read_checkpoint(weights)
        )
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:  # diffusers raises the latter three
        raise damaged(config, error) from error
    tensors = {
        OLD_ATTENTION.sub(lambda old: f".{TODAY[old[1]]}.", key): tensor
        for key, tensor in tensors.items()
    }
    expected = network.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[key].shape) if key in expected else "no such tensor"
        have = tuple(tensors[key].shape) if key in tensors else "missing"
        if want != have:
            raise InputError(
                f"{weights}: does not fit {config.name}: {key} is {have} in the file, {want} in "
                "the network"
            )
    network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def read_settings(config: Path, weights: Path) -> dict[str, Any]:
    """Return config.json.

    Raises InputError when it or the weights are missing, and when it is damaged or of another kind
    of network.
    """
    require_pixel_network(config, weights)
    try:
        settings = read_json(config)
        if not isinstance(
            settings, dict
        ):  # diffusers would take a text for the name of a model to download
            raise TypeError(f"{config.name} holds no JSON object")
        made_by = settings.get("_class_name", "UNet2DModel")
        lacking = {"out_channels", "block_out_channels"} - settings.keys()
        if made_by == "UNet2DModel" and lacking:
            raise ValueError(f"{config.name} lacks {', '.join(sorted(lacking))}")
    except (ValueError, TypeError) as error:
        raise damaged(config, error) from error
    if made_by != "UNet2DModel":
        raise InputError(
            f"{config}: a {made_by}, and guided diffusion is a UNet2DModel: give another folder "
            "or backbone"
        )
    channels = settings.get("in_channels", 3), settings["out_channels"]
    if channels not in ((3, 3), (3, 6)):
        raise InputError(
            f"{config}: {channels[0]} channels in and {channels[1]} out; RGB, 3 in and 3 or 6 "
            "out, is needed"
        )
    if settings.get("class_embed_type") is not None or settings.get("num_class_embeds") is not None:
        raise InputError(
            f"{config}: a class-conditional network, and nothing here gives it a class: take "
            "another"
        )
    return settings


def damaged(config: Path, error: Exception) -> InputError:
    """The error for a backbone's folder that cannot be read, in one line."""
    return InputError(
        f"{config.parent}: damaged backbone ({' '.join(str(error).split())}); fetch it again"
    )


def require_pixel_network(config: Path, weights: Path) -> None:
    """Raise InputError when a file is missing, and say so where the folder is a whole pipeline of
    another family.
    """
    for path in (config, weights):
        if not path.is_file():
            if (pipeline := path.parent / "model_index.json").is_file():
                raise InputError(
                    f"{pipeline}: a pipeline of diffusers, not the folder of a guided-diffusion "
                    "network"
                )
            raise InputError(
                f"{path}: no such file; a backbone folder holds {CONFIG} and {WEIGHTS}"
            )
