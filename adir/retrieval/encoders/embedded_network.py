"""The network of the embedded encoder: a small residual CNN from a picture to a unit vector.

Batch normalisation (Ioffe and Szegedy, 2015) in evaluation mode is a fixed affine map, so a vector does not depend
on the other pictures of its batch.
"""

from pathlib import Path

import safetensors.torch
from torch import Tensor, nn
from torch.nn import functional

from adir.files import write_bytes

WEIGHTS_NAME = "encoder.safetensors"
INPUT_SIZE = 64  # pixels a side
DIMENSIONS = 256


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al., 2016b); the first convolution carries the stride."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        changes = stride != 1 or channels_in != channels_out
        self.skip = nn.Conv2d(channels_in, channels_out, 1, 1, bias=False) if changes else None
        self.stride = stride

    def forward(self, h: Tensor) -> Tensor:
        a = functional.relu(self.norm1(h))
        if self.skip is not None:
            # average before the 1x1: a strided 1x1 would drop three of four positions
            h = self.skip(functional.avg_pool2d(a, self.stride) if self.stride > 1 else a)
        a = functional.relu(self.norm2(self.conv1(a)))
        return h + self.conv2(a)


class EncoderNetwork(nn.Module):
    """(B, 3, 64, 64) pictures in [-1, 1] to (B, 256) unit vectors; `widths`: channels at 32, 16, 8 and 4 pixels."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 224), blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        stages, channels = [], widths[0]
        for level, width in enumerate(widths):
            for block in range(blocks if level else 1):
                stages.append(ResidualBlock(channels, width, 2 if level and block == 0 else 1))
                channels = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, DIMENSIONS, bias=False)

    def pooled(self, x: Tensor) -> Tensor:
        """(B, C) averages over the last feature map."""
        return functional.relu(self.norm(self.stages(self.stem(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.head(self.pooled(x)).float(), dim=1)


def save_network(network: EncoderNetwork, folder: str | Path) -> None:
    """Write `encoder.safetensors` into the folder, atomically: convolutions float16, batch statistics float32.

    A running variance can lie below the smallest normal float16, so those stay wide.
    """
    wide = {"running_mean", "running_var"}
    tensors = {
        name: (value if name.rpartition(".")[2] in wide else value.half()).contiguous().clone()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    write_bytes(Path(folder) / WEIGHTS_NAME, safetensors.torch.save(tensors))


def load_network(path: str | Path) -> EncoderNetwork:
    """The network of a file that `save_network` wrote, float32, in evaluation mode."""
    network = EncoderNetwork()
    tensors = {name: value.float() for name, value in safetensors.torch.load_file(path).items()}
    missing, extra = network.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # counts of training, not stored
    if missing or extra:
        raise ValueError(f"{path}: not an embedded encoder (missing {missing}, extra {extra})")
    return network.eval().requires_grad_(False)
