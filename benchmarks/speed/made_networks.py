"""Networks of the paper's backbones with random weights, to measure speed without the real ones.

The variance of the weights keeps activations near 1; times do not depend on the weights. A pixel
network is written as a diffusers folder and read by the package's own loader.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from adir.backbones.adm.architecture import Architecture
from adir.backbones.adm.conversion import build_network, configuration
from adir.backbones.execution import Execution
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.backbones.stable_diffusion import Condition, StableDiffusion
from adir.diffusion.schedule import linear_schedule
from adir.files import write_json


def architecture(
    model_channels: int, multiples: tuple[float, ...], attention: int, head: int
) -> Architecture:
    """Return the architecture of an ADM with learned variance.

    Args:
        model_channels: base number of channels.
        multiples: channels of each level over model_channels.
        attention: number of levels with attention, counted from the deepest.
        head: channels per attention head.
    """
    return Architecture(
        model_channels=model_channels,
        channels=tuple(int(multiple * model_channels) for multiple in multiples),
        num_res_blocks=2,
        attention=tuple(level >= len(multiples) - attention for level in range(len(multiples))),
        out_channels=6,
        use_scale_shift_norm=True,
        resblock_updown=True,
        num_heads=4,
        num_head_channels=head,
        num_heads_upsample=-1,
        use_new_attention_order=False,
    )


GD256 = (1, 1, 2, 2, 4, 4)
GD512 = (0.5, 1, 1, 2, 2, 4, 4)
PIXEL = {  # {(network, size): architecture}; `small` runs on two CPU cores
    ("gd256", "real"): architecture(256, GD256, attention=3, head=64),
    ("gd512", "real"): architecture(256, GD512, attention=3, head=64),
    ("gd256", "small"): architecture(32, GD256, attention=3, head=32),
    ("gd512", "small"): architecture(64, GD512, attention=3, head=32),
}


def upscaler_settings(widths: tuple[int, ...], text: int, heads: int) -> dict[str, Any]:
    """Return the UNet2DConditionModel settings of Stable Diffusion's x4 upscaler.

    It has self-attention on its deepest level only.
    """
    return {
        "in_channels": 7,
        "out_channels": 4,
        "block_out_channels": widths,
        "down_block_types": ["DownBlock2D"] + 3 * ["CrossAttnDownBlock2D"],
        "up_block_types": 3 * ["CrossAttnUpBlock2D"] + ["UpBlock2D"],
        "only_cross_attention": [True, True, True, False],
        "cross_attention_dim": text,
        "attention_head_dim": heads,
        "num_class_embeds": 1000,
        "use_linear_projection": True,
        "layers_per_block": 2,
    }


LATENT = {
    ("sd_x4", "real"): upscaler_settings((256, 512, 512, 1024), text=1024, heads=8),
    ("sd_x4", "small"): upscaler_settings((32, 64, 64, 128), text=64, heads=4),
}
NETWORKS = ("gd256", "gd512", "sd_x4")


def empty_network(network: str, size: str) -> Any:
    """Return the network on device "meta", in eval mode, with nothing trainable."""
    if (network, size) in PIXEL:
        made = build_network(configuration(PIXEL[network, size]))
    else:
        with torch.device("meta"):
            made = UNet2DConditionModel.from_config(LATENT[network, size])
    return made.eval().requires_grad_(False)


def example_inputs(
    network: Any, batch: int, height: int, width: int, device: str
) -> dict[str, torch.Tensor]:
    """Return the arguments of one call of a diffusers UNet, all zero.

    Height and width are those of the input, which for a latent network is not the image.
    """
    config = network.config
    inputs = {
        "sample": torch.zeros(batch, config.in_channels, height, width, device=device),
        "timestep": torch.zeros(batch, dtype=torch.long, device=device),
    }
    if "cross_attention_dim" in config:
        inputs["encoder_hidden_states"] = torch.zeros(
            batch, 77, config.cross_attention_dim, device=device
        )
        if config.num_class_embeds is not None:
            inputs["class_labels"] = torch.zeros(batch, dtype=torch.long, device=device)
    return inputs


def fill(network: nn.Module) -> nn.Module:
    """Replace the weights of a network on "meta" by weights in memory, and return the network.

    Weights of norms are 1, biases 0, the rest normal with variance 1/fan_in.
    """
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.fill_(float(name.endswith("weight")))
    return network


def pixel_backbone(network: str, size: str, folder: Path, execution: Execution) -> GuidedDiffusion:
    """Return a backbone read from `folder`, which the first call writes."""
    folder = folder / f"{network}-{size}"
    weights = folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        settings = configuration(PIXEL[network, size])
        made = fill(build_network(settings))
        write_json(folder / "config.json", settings)
        save_file(made.state_dict(), weights.with_suffix(".part"))
        weights.with_suffix(".part").rename(weights)
    return GuidedDiffusion(
        network,
        folder,
        resolution=512,
        variance="learned",
        device=execution.device,
        execution=execution,
    )


class LatentParts:
    """Latent backbone with the parts of StableDiffusionX4 that sampling and adaptation call.

    It has no VAE and no text encoder.
    """

    def __init__(self, size: str, execution: Execution) -> None:
        self.execution, self.device = execution, torch.device(execution.device)
        self.network: Any = execution.prepare(fill(empty_network("sd_x4", size)))
        self.scheduler = DDIMScheduler(
            beta_start=1e-4,
            beta_end=0.02,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
        )
        self.schedule = linear_schedule(1000)

    def output(self, z_t: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Return the UNet's raw output, as the backbone does."""
        return StableDiffusion.output(self, z_t, t, condition)  # type: ignore[arg-type]

    def condition(self, batch: int, side: int) -> Condition:
        """Return random noise in place of the small image and the text."""
        text = torch.randn(batch, 77, self.network.config.cross_attention_dim, device=self.device)
        channels = torch.randn(batch, 3, side, side, device=self.device)
        return Condition(channels, text, torch.full((batch,), 20, device=self.device))
