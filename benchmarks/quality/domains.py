"""Apply the rule that chose the photographs of `data=domains`.

    python benchmarks/quality/domains.py --parquet caltech101_128.parquet

The rule selects photographs of scikit-image on which the embedded prior has a large error: the
error of the untuned denoiser on clean images, without adaptation or sampling. The script takes
about ten minutes on one busy core. A stopped run resumes from the file of --notes.
"""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.data.corpus import parquet_corpus
from adir.data.domains import (
    DOMAINS,
    SHORTEST,
    STRIDE,
    corpus_fields_of,
    scale_of,
    three_of_a_column,
)
from adir.data.fields import FLAT, SIZE, cut, lattice
from adir.data.photographs import reduced
from adir.files import write_json
from adir.harness.running.pipeline import ORACLE_TIMESTEPS
from adir.harness.running.provenance import commit
from adir.images import from_uint8
from benchmarks.common import REPOSITORY, add_parquet, parser_of, publish
from benchmarks.quality.fine_tuning import oracle_errors

CANDIDATES = "brick grass gravel ihc retina hubble_deep_field coins moon cell page text".split()
FACTOR, LEAST_CROPS = 0.3, 20
WINDOWS = 16
CROP = 64  # side of a fine-tuning crop in pixels
T = TypeVar("T")
HEAD = """# The photographs of `data=domains`

The rule. A photograph of scikit-image passes if

1. the error of the untuned embedded denoiser on it is above {factor} of the error on Caltech-101's `val`, the prior's own
   categories: mean over t of (error on the photograph / error on `val` at that t);
2. it has room for three test fields, and leaves at least {least} disjoint windows for the corpus. A window is a cell of
   {crop}x{crop} pixels (a crop of fine-tuning) of a lattice; it is not flat and shares no pixel with those that its test fields
   depend on.

It is reduced by the largest whole factor that leaves {shortest} pixels of its shorter side (`scale`). Test fields: the top,
the middle and the bottom one of a column of 128x128 fields. The column is the leftmost of a lattice of {stride} pixels whose three
fields do not overlap; flat fields do not count. Error: mean squared error of eps, one fixed noise per t
(`torch.Generator().manual_seed(t)`), mean over the disjoint 128x128 windows (corners at multiples of 128) that are not flat. If
there are more than {windows}, {windows} of them are drawn with seed {seed}. On `val`: mean over {n_val} of its {all_val} images, drawn alike.

{date}, commit {commit}:

    python benchmarks/quality/domains.py --parquet {parquet}

| photograph | scale | windows | {columns} | mean | test fields | {crop}x{crop} left | corpus fields | passes |
| --- | --- | --- | {dashes} | --- | --- | --- | --- | --- |
"""
TAIL = """
Columns t: ratio of errors. `corpus fields`: number of fields of that photograph in the corpus, if it passes. Errors on `val` at these t:
{known}.

The factor was chosen after a look at this table, and before any adaptation was run on these test fields. It is low enough that all
six photographs with room pass, because four clusters allow little statistics. The plain error does not measure how far a domain
lies from the prior's: most of these photographs are smoother than Caltech-101's, and noise is easier to tell from a smooth
image, whatever the prior was trained on. Read the suite as six kinds of image that Caltech-101 does not hold.

Test fields: {ids}.
"""


def crops_left(photograph: str) -> int:
    """Return the number of crops of a photograph that are usable for fine-tuning.

    The photograph is resized to the scale at which its test images are cut out, and divided into
    squares of CROP x CROP pixels. A square is usable if no test image depends on its pixels, and if
    its pixels have a standard deviation of at least FLAT grey levels.
    """
    scale = scale_of(photograph)
    pixels = reduced(photograph, scale)
    taken = [
        [edge / scale for edge in field.footprint()] for field in three_of_a_column(photograph)
    ]
    count = 0
    for y in range(0, pixels.shape[0] - CROP + 1, CROP):
        for x in range(0, pixels.shape[1] - CROP + 1, CROP):
            free = all(
                y >= bottom or y + CROP <= top or x >= right or x + CROP <= left
                for top, left, bottom, right in taken
            )
            count += free and pixels[y : y + CROP, x : x + CROP].mean(2).std() >= FLAT
    return count


def drawn(some: Sequence[T], n: int, seed: int) -> list[T]:
    """Return n elements drawn without replacement, or all elements if there are fewer."""
    return [some[place] for place in np.random.default_rng(seed).permutation(len(some))[:n]]


def main() -> None:
    parser = parser_of(__doc__, REPOSITORY / "results" / "embedded" / "domains.md")
    add_parquet(parser)
    parser.add_argument("--n", type=int, default=48, help="images of the split `val`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--notes", type=Path, default=Path("domains-notes.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    backbone = GuidedDiffusion()
    notes: dict[str, list[float]] = (
        json.loads(args.notes.read_text()) if args.notes.exists() else {}
    )

    def measured(name: str, x: Tensor) -> list[float]:
        if name not in notes:
            notes[name] = list(oracle_errors(backbone, x).values())
            write_json(args.notes, notes)
        return notes[name]

    windows = {
        name: drawn(lattice(name, {scale_of(name): SIZE}), WINDOWS, args.seed)
        for name in CANDIDATES
    }
    of = {
        name: [measured(field.id, from_uint8(cut(field))) for field in windows[name]]
        for name in CANDIDATES
    }
    val = parquet_corpus(args.parquet, "split", "val")
    known = np.mean(
        [measured(name, val.image(name)) for name in drawn(val.ids, args.n, args.seed)], axis=0
    )

    rows, passed = [], []
    for name in CANDIDATES:
        ratios = np.mean(of[name], axis=0) / known
        tests, left = three_of_a_column(name), crops_left(name)
        passes = ratios.mean() > FACTOR and len(tests) == 3 and left >= LEAST_CROPS
        passed += [name] if passes else []
        cells = [
            name,
            scale_of(name),
            len(windows[name]),
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{ratios.mean():.2f}",
        ]
        cells += [len(tests), left, len(corpus_fields_of(name)), "yes" if passes else "no"]
        rows.append((ratios.mean(), f"| {' | '.join(map(str, cells))} |\n"))
    text = HEAD.format(
        factor=FACTOR, least=LEAST_CROPS, crop=CROP, shortest=SHORTEST, stride=STRIDE, windows=WINDOWS, seed=args.seed,
        n_val=args.n, all_val=len(val), date=date.today(), commit=commit(),
        parquet=Path(args.parquet).name, columns=" | ".join(f"t = {t}" for t in ORACLE_TIMESTEPS),
        dashes=" | ".join("---" for _ in ORACLE_TIMESTEPS),
    )  # fmt: skip
    text += "".join(row for _, row in sorted(rows, reverse=True))
    ids = ", ".join(field.id for name in passed for field in three_of_a_column(name))
    text += TAIL.format(known=", ".join(f"{error:.4f}" for error in known), ids=ids)
    publish(text, args.out)
    if tuple(passed) != DOMAINS:
        raise SystemExit(
            f"the rule gives {tuple(passed)}, but adir/data/domains.py has {DOMAINS}: update DOMAINS"
        )


if __name__ == "__main__":
    main()
