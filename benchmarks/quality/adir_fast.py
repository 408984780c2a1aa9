"""Compare ADIR's deterministic steps of first and second order, on a Gaussian prior and on images.

    adir run -m experiment=fast
    python benchmarks/quality/adir_fast.py runs/fast --out results/speed/adir_fast.md

The first table runs both samplers with the ideal denoiser of the prior in gaussian_prior.py.
Unguided samples are compared with the exact result of the probability flow. Guided samples are
compared with 1000 steps of first order. The second table is made from the records of
experiment=fast, on the 12 embedded test images.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from adir.backbones.base import Prediction
from adir.diffusion.schedule import linear_schedule
from adir.errors import InputError
from adir.harness.records.record import Record
from adir.harness.tables.statistics import PairedDifference, paired_difference
from adir.samplers.adir import ADIR, FastADIR
from adir.tasks.operators import BoxBlur, SuperResolution
from benchmarks.common import command, finished_records, made_on, parser_of, publish
from benchmarks.quality.gaussian_prior import SIDE, exact_eps, row_operator, smooth_prior

COUNTS = (10, 20, 50)
MARGIN = 0.2  # dB: adir_fast may replace the first-order step if the difference lies within it
N_DRAWS = 64
N_FIELDS = 12


class IdealDenoiser:
    """Backbone that predicts E[eps | x_t] for the prior N(0, S)."""

    def __init__(self, S: Tensor) -> None:
        self.schedule = linear_schedule()
        self.eps = exact_eps(torch.zeros(len(S), dtype=torch.float64), S)

    def predict(self, x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(self.eps(x_t, t), None)


class Row:
    """Operator that applies a matrix A (k, SIDE) to images of one row."""

    image_shape, sigma_y = (1, 1, SIDE), 0.0

    def __init__(self, A: Tensor) -> None:
        self.matrix, self.norm = A, torch.linalg.matrix_norm(A, 2).item()

    def A(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def gaussian_rows() -> list[str]:
    """Return the table's rows of rms distances, in units of [-1, 1].

    The reference is the probability flow for unguided runs, and 1000 first-order steps for guided
    runs.
    """
    S = smooth_prior()
    backbone = IdealDenoiser(S)
    seeds = range(N_DRAWS)
    draws = (
        torch.randn(1, 1, SIDE, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        for i in seeds
    )
    x_T = torch.stack(list(draws))
    sr4, deblur = Row(row_operator(SuperResolution(4))), Row(row_operator(BoxBlur(5)))
    x = torch.randn(
        N_DRAWS, SIDE, generator=torch.Generator().manual_seed(N_DRAWS), dtype=torch.float64
    )
    x = (x @ torch.linalg.cholesky(S).T)[:, None, None]

    def run(cls: type[ADIR], operator: Row, s: float, n: int) -> Tensor:
        sampler = cls(n_steps=n, guidance_scale=s, variance="small", clip_x0=False, eta=0.0)
        generators = [torch.Generator().manual_seed(i) for i in seeds]
        return sampler.restore(backbone, operator, operator.A(x), generators).x_hat  # type: ignore[arg-type]

    variances, vectors = torch.linalg.eigh(S)
    ab = backbone.schedule.alpha_bar[-1]
    flow = vectors @ torch.diag((variances / (ab * variances + 1 - ab)).sqrt()) @ vectors.T
    problems: list[tuple[str, Callable[[type[ADIR], int], Tensor], Tensor]] = [
        ("unguided, from the exact result", lambda cls, n: run(cls, sr4, 0.0, n), x_T @ flow)
    ]
    for name, operator, s in (("sr4, s = 1000", sr4, 1000.0), ("deblur, s = 30", deblur, 30.0)):
        guided = lambda cls, n, operator=operator, s=s: run(cls, operator, s, n)  # noqa: E731
        problems.append((f"{name}, from 1000 first-order steps", guided, guided(ADIR, 1000)))
    rows = []
    for name, made, right in problems:
        for order, cls in ((1, ADIR), (2, FastADIR)):
            errors = [rms(made(cls, n) - right) for n in (*COUNTS, 112, 334, 1000)]
            rows.append(
                f"| {name} | {order} | "
                f"{' | '.join('–' if e == 0 else f'{e:.5f}' for e in errors)} |"
            )
    return rows


Scores = dict[tuple[str, str, int], dict[str, Record]]


def read(results: Path) -> Scores:
    """Return {(task, sampler, evaluations): {image id: record}} of the complete cells.

    Raises:
        InputError: if a record failed or is damaged, or if no cell is complete.
    """
    found: Scores = defaultdict(dict)
    for record in finished_records(results):
        found[record.axes.task, record.axes.sampler, record.sampler.network_evaluations][
            record.image.id
        ] = record
    whole = {cell: images for cell, images in found.items() if len(images) == N_FIELDS}
    if not whole:
        raise InputError(f"{results} has no complete cell: run experiment=fast again")
    return whole


def difference(
    scores: Scores, a: tuple[str, str, int], b: tuple[str, str, int], metric: str
) -> PairedDifference:
    """Return a - b over the images; crops of one photograph are averaged first."""
    clusters = {image: record.image.cluster or image for image, record in scores[a].items()}
    values = [
        {image: record.value(metric) for image, record in scores[cell].items()} for cell in (a, b)
    ]
    found = paired_difference(values[0], values[1], clusters)
    if found is None:
        raise InputError(f"no image has {metric} in both {a} and {b}")
    return found


def field_rows(scores: Scores) -> list[str]:
    """Return one row per pair: equal evaluations, then second order with fewer evaluations."""
    rows = []
    for task in ("sr4", "deblur"):
        for n, n_first in (*((n, n) for n in COUNTS), (10, 20), (20, 50)):
            a, b = (task, "adir_fast", n), (task, "adir_clean", n_first)
            if a not in scores or b not in scores:
                rows.append(f"| {task} | {n_first} | {n} | not run yet | | | | |")
                continue
            psnr, deep = difference(scores, a, b, "psnr"), difference(scores, a, b, "deep-lite0")
            inside = (
                psnr.low is not None
                and psnr.high is not None
                and -MARGIN <= psnr.low <= psnr.high <= MARGIN
            )
            means = f"{psnr.reference:.2f} | {psnr.reference + psnr.mean:.2f}"
            verdict = "yes" if inside else "no"
            rows.append(
                f"| {task} | {n_first} | {n} | {means} | {shown(psnr, 2)} | {verdict} | "
                f"{shown(deep, 3)} |"
            )
    return rows


def shown(difference: PairedDifference, digits: int) -> str:
    """Return the mean and its interval, such as `+0.12 [+0.03, +0.20]`."""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.{digits}f}"
    return (
        f"{difference.mean:+.{digits}f} [{difference.low:+.{digits}f}, "
        f"{difference.high:+.{digits}f}]"
    )


def fields(results: Path | None) -> str:
    """Return the second part of the report, on the images."""
    if results is None:
        return "Not run yet: `adir run -m experiment=fast`."
    scores = read(results)
    records = [record for images in scores.values() for record in images.values()]
    commits = ", ".join(sorted({str(record.commit)[:10] for record in records}))
    clusters = {record.image.cluster or record.image.id for record in records}
    return f"""{N_FIELDS} crops of {len(clusters)} photographs; the photograph is the unit; one seed; means in dB. Differences are
second minus first order, with 90 % intervals (bootstrap-t). Lower deep-lite0 is better. The second order may replace the
first in small experiments if the interval of PSNR lies within ±{MARGIN} dB at the same count.

Records of commit {commits}, torch {records[0].versions["torch"]}.

| task | evaluations, first | evaluations, second | PSNR, first | PSNR, second | difference | within ±{MARGIN} dB | deep-lite0 |
|---|---|---|---|---|---|---|---|
{chr(10).join(field_rows(scores))}"""


def report(results: Path | None) -> str:
    """Return the whole page."""
    counts = " | ".join(map(str, (*COUNTS, 112, 334, 1000)))
    return f"""# ADIR's deterministic step, of first and of second order

`sampler=adir_fast` extrapolates x0 from two predictions (`extrapolated_x0` in adir/diffusion/posterior.py) and makes one network
evaluation per step. First order: `sampler=adir_clean sampler.eta=0 sampler.temperature=1`, with the same guidance.

## On a Gaussian prior

The ideal denoiser of N(0, S) with power 1 / (k^2 + 1/4), {SIDE} pixels, variance 0.25; the same {N_DRAWS} draws of x_T, no clipping. Root
mean square distance in units of [-1, 1], by number of evaluations. From 112 to 334 and to 1000, the step shrinks to a third each time:
an error of first order falls by 3, one of second order by 9. The guidance step is of first order, so guided results have its error.

| | order | {counts} |
|---|---|{"---|" * (len(COUNTS) + 3)}
{chr(10).join(gaussian_rows())}

## On the 12 fields

{fields(results)}

{made_on()}. Command: `{command(__file__)}`
"""


def main() -> None:
    """Compute, print, and write the report if --out is given."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "results",
        type=Path,
        nargs="?",
        help="folder of experiment=fast; without it, only the Gaussian prior",
    )
    arguments = parser.parse_args()
    publish(report(arguments.results), arguments.out)


if __name__ == "__main__":
    main()
