"""Compare our noise, ranges and PSNR with published figures: FFDNet for colour images on CBSD68.

    python benchmarks/quality/independent.py FOLDER --out results/quality/independent.md

FOLDER holds `ffdnet_color.pth` and, in it or below it, the 68 images of CBSD68. This repository does
not include them, because they have no stated licence. Download them by hand:

    https://github.com/cszn/KAIR/releases/tag/v1.0                ffdnet_color.pth
    https://github.com/cszn/FFDNet/tree/master/testsets/CBSD68    0000.png to 0067.png

Each image is processed like a test image. It is read in [-1, 1]. The operator of a task (a box blur
of one pixel, which changes nothing) and its sigma_y give y. x_hat is rounded to an 8-bit file and
scored by the metric `psnr` on RGB. The published protocol keeps the real values of y. In the column
"as a task", y is clipped and rounded to 8 bits, as in every task of `adir run`; the column shows
the cost of doing so.

The exit status is 1 if a mean differs by more than 0.1 dB from the published value.
"""

import statistics
import sys
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from adir.errors import InputError
from adir.files import walk
from adir.images import IMAGE_SUFFIXES, from_uint8, generator, read_image, to_uint8
from adir.scoring.metrics import psnr
from adir.tasks.operators import BoxBlur
from adir.tasks.restoration import RestorationTask
from adir.weights.cache import known_sha256
from adir.weights.checkpoint import read_checkpoint
from benchmarks.common import command, parser_of, publish

PUBLISHED = {30: 30.32, 50: 27.97}
"""{sigma in grey levels: mean PSNR on RGB, in dB}."""
AGREES = 0.1
"""Tolerance in dB. Another draw of the noise changes a mean over 68 images by about 0.005."""
WEIGHTS = "ffdnet_color.pth"


class FFDNet(nn.Module):
    """FFDNet (Zhang, Zuo and Zhang, 2018) for colour images.

    It has 12 convolutions of 96 channels, on the image unshuffled to four of half its size.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(13, 96, 3, padding=1), nn.ReLU()]
        for _ in range(10):
            layers += [nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(96, 12, 3, padding=1))

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        """Return the denoised images.

        Args:
            y: (B, 3, H, W) noisy images in [0, 1].
            sigma: standard deviation of the noise, in the units of y.
        """
        height, width = y.shape[-2:]
        even = functional.pad(y, (0, width % 2, 0, height % 2), mode="replicate")
        halves = functional.pixel_unshuffle(even, 2)
        level = torch.full_like(halves[:, :1], sigma)
        x: Tensor = functional.pixel_shuffle(self.model(torch.cat([halves, level], 1)), 2)
        return x[..., :height, :width]


def load_network(path: Path) -> FFDNet:
    """Return FFDNet with the weights of a file.

    Raises:
        InputError: if the file does not have the weights of FFDNet for colour images.
    """
    network = FFDNet()
    try:
        network.load_state_dict(read_checkpoint(path))
    except RuntimeError as error:
        raise InputError(f"{path}: not the weights of FFDNet for colour images") from error
    return network.eval()


@torch.no_grad()
def score(network: FFDNet, x: Tensor, name: str, sigma: int, as_task: bool) -> float:
    """Return the PSNR in dB of a denoised image.

    Args:
        network: FFDNet.
        x: (3, H, W) ground truth in [-1, 1].
        name: the image's name, which seeds the noise.
        sigma: the noise level in grey levels of 255.
        as_task: clip y and round it to 8 bits.
    """
    task = RestorationTask("denoising", 1, BoxBlur(1), sigma, 0)
    noise = generator(0, name, "y")
    operator = task.operator(tuple(x.shape))
    if as_task:
        y = task.degrade(x, noise)
    else:
        y = operator.A(x) + operator.sigma_y * torch.randn(operator.y_shape, generator=noise)
    x_hat = 2 * network((y[None] + 1) / 2, operator.sigma_y / 2)[0] - 1
    as_file = from_uint8(to_uint8(x_hat))
    return float(psnr((as_file[None] + 1) / 2, (x[None] + 1) / 2))


def measure(folder: Path) -> list[tuple[int, int, float, float]]:
    """Return one row per sigma: (sigma, number of images, mean PSNR, mean PSNR with y as a task)."""
    paths = list(walk(folder, IMAGE_SUFFIXES))
    if not paths:
        raise InputError(f"{folder}: no images; the top of this script says where to download them")
    network = load_network(folder / WEIGHTS)
    rows = []
    for sigma in PUBLISHED:
        means = [
            statistics.fmean(
                score(network, read_image(path), path.name, sigma, as_task) for path in paths
            )
            for as_task in (False, True)
        ]
        rows.append((sigma, len(paths), *means))
    return rows


def report(rows: list[tuple[int, int, float, float]], weights: Path) -> str:
    """Return the report in Markdown."""
    lines = [
        "# FFDNet through our noise, ranges and metric",
        "",
        "Mean PSNR on RGB in dB; seed 0. y has real values in the published protocol. As a task "
        "of `adir run` it is clipped and 8-bit.",
        "",
        "| sigma | images | published | here | difference | y as a task |",
        "|---|---|---|---|---|---|",
    ]
    for sigma, n, here, as_task in rows:
        published = PUBLISHED[sigma]
        lines.append(
            f"| {sigma} | {n} | {published:.2f} | {here:.2f} | {here - published:+.2f} | "
            f"{as_task:.2f} |"
        )
    made = f"{date.today()}, {weights.name} with SHA-256 {known_sha256(weights)[:16]}..."
    return "\n".join([*lines, "", f"{made}:", "", f"    {command(__file__)}", ""])


def main() -> int:
    """Measure, print, and write the report if --out is given.

    Returns 1 if a mean does not agree with the published value, 2 if files are missing.
    """
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help=f"with {WEIGHTS} and the images of CBSD68")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        rows = measure(given.folder)
    except InputError as error:
        print(f"independent.py: {error}", file=sys.stderr)
        return 2
    publish(report(rows, given.folder / WEIGHTS), given.out)
    return int(any(abs(here - PUBLISHED[sigma]) > AGREES for sigma, _, here, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
