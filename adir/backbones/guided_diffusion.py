"""ADM, the guided-diffusion network (Dhariwal and Nichol, 2021), as a configured `diffusers.UNet2DModel`.

The prior that ships with the package is one such network, small enough for a CPU.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adir.diffusion.schedule import linear_schedule
from adir.errors import InputError
from adir.files import read_json, sha256_of_file

Variance = Literal["learned", "small", "large"]

EMBEDDED_PRIOR = Path(__file__).parent.parent / "embedded" / "prior"


@dataclass(frozen=True)
class Prediction:
    """What the denoiser says of x_t."""

    eps: Tensor
    """(B, 3, H, W) predicted noise."""
    variance_fraction: Tensor | None
    """(B, 3, H, W): (v + 1) / 2 of a network that learns its variance, see posterior.learned_log_variance; else None.

    The variance itself depends on the sampler's respacing, which the network does not know.
    """


class GuidedDiffusion:
    """A pixel-space denoiser read from a diffusers folder (config.json, diffusion_pytorch_model.safetensors).

    folder: None is the embedded prior.  resolution: side in pixels of the pictures it was trained on; other sizes work.
    variance: the Sigma that goes with this network, `learned` where it predicts one (6 output channels), else `small`
    (beta tilde) or `large` (beta).  Weights may be float16 on disk and are float32 in memory. They are hashed, and so is
    the configuration (a wrong norm_eps fits the same tensors); both hashes are part of a cell's identity.  Raises
    InputError for a folder that is not such a model.
    """

    def __init__(
        self,
        name: str = "embedded",
        folder: str | Path | None = None,
        resolution: int = 64,
        variance: Variance = "small",
        device: str = "cpu",
    ):
        self.name = name
        self.folder = EMBEDDED_PRIOR if folder is None else Path(folder)
        self.resolution = resolution
        self.device = torch.device(device)
        self.schedule = linear_schedule(1000)
        weights = self.folder / "diffusion_pytorch_model.safetensors"
        self.network = load_network(self.folder / "config.json", weights).to(self.device)
        self.weights_sha256 = sha256_of_file(weights)
        self.config_sha256 = sha256_of_file(self.folder / "config.json")
        self.learns_variance = self.network.config["out_channels"] == 6
        self.variance = variance
        if (variance == "learned") and not self.learns_variance:
            raise InputError(f"backbone={name}: variance=learned, but its network predicts none: use small or large")

    @property
    def stride(self) -> int:
        """Height and width of a picture must be multiples of this: the network halves them once per level."""
        return 2 ** (len(self.network.config["block_out_channels"]) - 1)

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Noise in x_t (B, 3, H, W) at the original timesteps t (B,), int64 from 0 to 999.

        On a CPU one picture at a time: no slower (7 to 9 pictures of 128x128 a second on one thread, at batch 1, 4 and
        8 alike), and bit-equal in any batch, where oneDNN's batched convolutions differ by 1e-6.
        """
        parts = zip(x_t.split(1), t.split(1), strict=True) if self.device.type == "cpu" else [(x_t, t)]
        return self.prediction(torch.cat([self.network(x, s, return_dict=False)[0] for x, s in parts]))

    def prediction(self, output: Tensor) -> Prediction:
        """The network's raw output (B, 3 or 6, H, W), told apart."""
        if not self.learns_variance:
            return Prediction(output, None)
        eps, v = output.chunk(2, dim=1)
        return Prediction(eps, (v + 1) / 2)

    def encode(self, image: Tensor) -> Tensor:
        """The identity: this model works on pixels."""
        return image

    def decode(self, latent: Tensor) -> Tensor:
        """The identity: this model works on pixels."""
        return latent


def load_network(config: Path, weights: Path) -> UNet2DModel:
    """UNet2DModel in eval mode, float32, from its configuration and safetensors file.

    Raises InputError when a file is missing or damaged, or when a tensor of the file does not fit the configuration.
    """
    for path in (config, weights):
        if not path.is_file():
            raise InputError(f"{path}: no such file; a backbone folder holds config.json and {weights.name}")
    try:
        settings = read_json(config)
        if not isinstance(settings, dict):  # diffusers would take a text for the name of a model to download
            raise TypeError(f"{config.name} holds no JSON object")
        network = UNet2DModel.from_config(settings)
        tensors = load_file(weights)
    except (SafetensorError, ValueError, TypeError) as error:  # diffusers raises the latter two
        raise InputError(f"{config.parent}: damaged backbone ({error}); fetch it again") from error
    expected = network.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[key].shape) if key in expected else "no such tensor"
        have = tuple(tensors[key].shape) if key in tensors else "missing"
        if want != have:
            raise InputError(
                f"{weights}: does not fit {config.name}: {key} is {have} in the file, {want} in the network"
            )
    network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return network.eval().requires_grad_(False)
