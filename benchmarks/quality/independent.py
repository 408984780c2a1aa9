"""Our noise, ranges and PSNR against figures published elsewhere:

FFDNet for colour images on CBSD68.

    python benchmarks/quality/independent.py FOLDER --out results/quality/independent.md

FOLDER holds `ffdnet_color.pth` and the 68 images of CBSD68, in it or below it. They do not come
with this repository, as no licence is stated for them; put them there by hand:

    https://github.com/cszn/KAIR/releases/tag/v1.0                ffdnet_color.pth
    https://github.com/cszn/FFDNet/tree/master/testsets/CBSD68    0000.png to 0067.png

An image goes the way of a test image: read in [-1, 1], y by the operator of a task (a box blur of
one pixel, which changes nothing) and its sigma_y, x_hat as an 8-bit file, scored by the metric
`psnr` on RGB. The published protocol leaves y as it is; the column "as a task" has it clipped and
rounded to 8 bits, as every task of `adir run` has, which costs what it says.

Returns 1 where a mean is more than 0.1 dB away from what is published.
"""

import argparse
import datetime
import shlex
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from adir.errors import InputError
from adir.files import walk, write_bytes
from adir.images import IMAGE_SUFFIXES, from_uint8, generator, read_image, to_uint8
from adir.scoring.metrics import psnr
from adir.tasks.operators import BoxBlur
from adir.tasks.restoration import RestorationTask
from adir.weights.cache import known_sha256
from adir.weights.checkpoint import read_checkpoint

PUBLISHED = {30: 30.32, 50: 27.97}
"""{sigma in grey levels: mean PSNR on RGB, in dB}"""
AGREES = 0.1
"""dB. Another draw of the noise moves a mean over 68 images by some 0.005."""
WEIGHTS = "ffdnet_color.pth"


class FFDNet(nn.Module):
    """FFDNet (Zhang, Zuo and Zhang, 2018) for colour images: 12 convolutions of 96 channels on the
    four half-size images.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(13, 96, 3, padding=1), nn.ReLU()]
        for _ in range(10):
            layers += [nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(96, 12, 3, padding=1))

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        """The clean images (B, 3, H, W) of y in [0, 1] with noise of standard deviation sigma, in
        the same units.
        """
        height, width = y.shape[-2:]
        even = functional.pad(y, (0, width % 2, 0, height % 2), mode="replicate")
        halves = functional.pixel_unshuffle(even, 2)
        level = torch.full_like(halves[:, :1], sigma)
        x: Tensor = functional.pixel_shuffle(self.model(torch.cat([halves, level], 1)), 2)
        return x[..., :height, :width]


def load_network(path: Path) -> FFDNet:
    """FFDNet with the weights of a file.

    Raises InputError where they are not those of FFDNet for colour images.
    """
    network = FFDNet()
    try:
        network.load_state_dict(read_checkpoint(path))
    except RuntimeError as error:
        raise InputError(f"{path}: not the weights of FFDNet for colour images") from error
    return network.eval()


@torch.no_grad()
def score(network: FFDNet, x: Tensor, name: str, sigma: int, as_task: bool) -> float:
    """PSNR in dB of a denoised image x (3, H, W) in [-1, 1]. as_task: y is clipped and rounded to 8
    bits.
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
    """(sigma, number of images, mean PSNR of y as published, of y as a task has it) for each sigma."""
    paths = list(walk(folder, IMAGE_SUFFIXES))
    if not paths:
        raise InputError(f"{folder}: no images; see the top of this script for where they are from")
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
    """The table in Markdown."""
    lines = [
        "# FFDNet through our noise, ranges and metric",
        "",
        "Mean PSNR on RGB in dB; seed 0. y as published has real values; as a task of `adir "
        "run` it is clipped and 8-bit.",
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
    command = shlex.join(["python", "benchmarks/quality/independent.py", *sys.argv[1:]])
    made = (
        f"{datetime.date.today().isoformat()}, {weights.name} with SHA-256 "
        f"{known_sha256(weights)[:16]}..."
    )
    return "\n".join([*lines, "", f"{made}:", "", f"    {command}", ""])


def main() -> int:
    """Measure, print, and write the report when asked.

    Returns 1 where it does not agree, 2 where files are missing.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help=f"with {WEIGHTS} and the images of CBSD68")
    parser.add_argument("--out", type=Path, help="the report, in Markdown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        rows = measure(given.folder)
    except InputError as error:
        print(f"independent.py: {error}", file=sys.stderr)
        return 2
    text = report(rows, given.folder / WEIGHTS)
    print(text, end="")
    if given.out is not None:
        write_bytes(given.out, text.encode())
    return int(any(abs(here - PUBLISHED[sigma]) > AGREES for sigma, _, here, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
