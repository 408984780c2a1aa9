"""Compare ADIR's Algorithm 1 with the exact posterior on Gaussian priors, both in closed form.

For x ~ N(m, S) the ideal denoiser E[eps | x_t] is affine, so each step of Algorithm 1 is affine.
The mean and covariance of its samples therefore follow from those of x_T ~ N(0, I) without sampling
error. tests/samplers/test_adir.py checks this recursion against the sampler itself. Images are
vectors here: m (d,), S (d, d), A (k, d), y (k,) or several as (k, n), all float64.

Run: python benchmarks/quality/gaussian_prior.py [--out results/embedded/gaussian_prior.md]; seconds
    on one core.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adir.diffusion.guidance import STABLE_STEP
from adir.diffusion.schedule import Schedule, linear_schedule
from adir.tasks.operators import BoxBlur, SuperResolution
from benchmarks.common import made_on, parser_of, publish

# Pixels of an image. One row is enough, because A is a product of its two directions.
SIDE = 32
DRAWS = 200  # draws of x and y to average a bias over


def exact_eps(
    m: Tensor, S: Tensor, schedule: Schedule | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function E[eps | x_t] for x ~ N(m, S).

    It takes images (B, ...) of d values and timesteps (B,), which must be equal in a batch.
    """
    alpha_bars = (schedule or linear_schedule()).alpha_bar

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        K, offset = eps_map(m, S, alpha_bars[t[0]])
        return (x_t.flatten(1).double() @ K.T + offset).reshape(x_t.shape).to(x_t.dtype)

    return eps


def eps_map(m: Tensor, S: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Return K and k with E[eps | x_t] = K x_t + k.

    E[eps | x_t] = sqrt(1 - ab) (ab S + (1 - ab) I)^-1 (x_t - sqrt(ab) m).
    """
    eye = torch.eye(len(m), dtype=torch.float64)
    K = (1 - alpha_bar).sqrt() * torch.linalg.inv(alpha_bar * S + (1 - alpha_bar) * eye)
    return K, -alpha_bar.sqrt() * K @ m


def propagate(
    schedule: Schedule,
    m: Tensor,
    S: Tensor,
    A: Tensor,
    y: Tensor,
    n_steps: int,
    guidance_scale: float,
    variance: str,
    cap: bool = True,
    measurement_level: str = "mean",
    eta: float = 1.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the mean and covariance of Algorithm 1's samples for the ideal denoiser of N(m, S).

    x0 is not clipped. `eta` is that of the DDIM step, whose direction uses the denoiser's eps, as
    in DDIM's eq. 12. The arguments after A and y are those of `adir.samplers.adir.ADIR`.

    Returns:
        The mean, (d,) for y (k,) or (d, n) for y (k, n), and the covariance (d, d), which does not
        depend on y.
    """
    tables = schedule.respaced(n_steps)
    m = m.reshape(-1, *[1] * (y.ndim - 1))
    eye, norm = torch.eye(len(m), dtype=torch.float64), torch.linalg.matrix_norm(A, 2).item()
    mean, covariance = torch.zeros(len(m), *y.shape[1:], dtype=torch.float64), eye
    for i in reversed(range(n_steps)):
        alpha_bar, alpha_bar_prev = tables.alpha_bar[i], tables.alpha_bar_prev[i]
        K, k = eps_map(m, S, alpha_bar)
        # x0 = X x_t + h and mu = sqrt(ab_prev) x0 + direction eps = M x_t + c
        X, h = (
            (eye - (1 - alpha_bar).sqrt() * K) / alpha_bar.sqrt(),
            -((1 - alpha_bar) / alpha_bar).sqrt() * k,
        )
        direction = (1 - alpha_bar_prev - eta**2 * tables.posterior_variance[i]).sqrt()
        M, c = alpha_bar_prev.sqrt() * X + direction * K, alpha_bar_prev.sqrt() * h + direction * k
        sigma_sq = {"small": tables.posterior_log_variance[i].exp(), "large": tables.betas[i]}[
            variance
        ]
        step = guidance_scale * sigma_sq
        if cap and norm > 0:
            step = step.clamp(max=STABLE_STEP / (2 * norm**2))
        level = alpha_bar_prev if measurement_level == "mean" else alpha_bar
        M, c = (
            M - 2 * step * A.T @ (A @ M - (1 - level).sqrt() * A @ K),
            c - 2 * step * A.T @ (A @ c - level.sqrt() * y - (1 - level).sqrt() * A @ k),
        )
        mean, covariance = M @ mean + c, M @ covariance @ M.T
        if i > 0:
            covariance = covariance + (temperature * eta) ** 2 * sigma_sq * eye
    return mean, covariance


def posterior(m: Tensor, S: Tensor, A: Tensor, y: Tensor, sigma_y: float) -> tuple[Tensor, Tensor]:
    """Return the mean and covariance of x given y = A x + e, e ~ N(0, sigma_y^2 I).

    Their shapes are those of `propagate`.
    """
    m = m.reshape(-1, *[1] * (y.ndim - 1))
    gain = (
        S
        @ A.T
        @ torch.linalg.inv(A @ S @ A.T + sigma_y**2 * torch.eye(len(y), dtype=torch.float64))
    )
    return m + gain @ (y - A @ m), S - gain @ A @ S


def row_operator(degradation: BoxBlur | SuperResolution) -> Tensor:
    """Return a task's operator in one direction, (k, SIDE).

    This is A for images that are constant down their columns. The kernels are products of
    one-dimensional kernels that sum to 1, so only the kernel along the row acts on such images.
    """
    operator = degradation((3, SIDE, SIDE))
    columns = torch.eye(SIDE, dtype=torch.float64)[:, None, None, :].expand(-1, 3, SIDE, -1)
    return operator.A(columns)[:, 0, 0, :].T.contiguous()


def smooth_prior() -> Tensor:
    """Return a circular covariance S (SIDE, SIDE) like that of a row of a photograph.

    The power is 1 / (k^2 + 1/4) at frequency k, the variance 0.25.
    """
    k = torch.fft.fftfreq(SIDE, 1 / SIDE).double()
    covariance = torch.fft.ifft(1 / (k**2 + 0.25)).real
    lag = (torch.arange(SIDE)[:, None] - torch.arange(SIDE)[None, :]) % SIDE
    return 0.25 * covariance[lag] / covariance[0]


def measurements(S: Tensor, A: Tensor, sigma_y: float) -> Tensor:
    """Return (k, DRAWS) values of y = A x + e for x ~ N(0, S); every call gives the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.cholesky(S) @ torch.randn(
        SIDE, DRAWS, generator=generator, dtype=torch.float64
    )
    return A @ x + sigma_y * torch.randn(len(A), DRAWS, generator=generator, dtype=torch.float64)


def residual(A: Tensor, y: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """Return the root of the expected mean square of A x - y for x ~ N(mean, covariance)."""
    return ((A @ mean - y).square().mean() + (A @ covariance @ A.T).trace() / len(y)).sqrt().item()


@dataclass(frozen=True)
class Problem:
    """Gaussian prior N(0, S) with an operator and a noise level; y is drawn from them."""

    S: Tensor
    A: Tensor
    sigma_y: float

    @property
    def likelihood_scale(self) -> float:
        """The s for which guidance equals the likelihood's at t = 0: 1 / (2 sigma_y^2)."""
        return 1 / (2 * self.sigma_y**2)

    def posterior_residual(self) -> float:
        """Return rms(A x - y) of posterior samples, over sigma_y."""
        y = measurements(self.S, self.A, self.sigma_y)
        return (
            residual(
                self.A, y, *posterior(torch.zeros(SIDE).double(), self.S, self.A, y, self.sigma_y)
            )
            / self.sigma_y
        )

    def compare(
        self,
        n_steps: int,
        s: float,
        variance: str,
        level: str = "mean",
        eta: float = 1.0,
        temperature: float = 1.0,
    ) -> tuple[float, float, float]:
        """Return (bias, ratio, residual) of Algorithm 1 with the cap on.

        The arguments are those of `propagate`; s is the guidance scale.

        Returns:
            bias: rms over pixels and y of its mean minus the posterior's, in posterior standard
                deviations; 0 is right.
            ratio: trace of its covariance over the posterior's; 1 is right, below 1 is
                overconfident.
            residual: rms(A x - y) of its samples over sigma_y; `posterior_residual` is right.
        """
        m, y = torch.zeros(SIDE, dtype=torch.float64), measurements(self.S, self.A, self.sigma_y)
        mean, covariance = propagate(
            linear_schedule(), m, self.S, self.A, y, n_steps, s, variance,
            measurement_level=level, eta=eta, temperature=temperature,
        )  # fmt: skip
        right_mean, right_covariance = posterior(m, self.S, self.A, y, self.sigma_y)
        deviation = right_covariance.diagonal().mean().sqrt()
        bias = ((mean - right_mean).square().mean().sqrt() / deviation).item()
        ratio = (covariance.trace() / right_covariance.trace()).item()
        return bias, ratio, residual(self.A, y, mean, covariance) / self.sigma_y


def unit_prior_rows() -> list[str]:
    """Return rows for one pixel, N(0, 1), y = 1.

    They compare the posterior, the closed form of the continuous limit, and 1000 steps.
    """
    rows = []
    one = torch.ones(1, 1, dtype=torch.float64)
    for r in (0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0):
        mean, covariance = propagate(
            linear_schedule(), 0 * one[0], one, one, one[0], 1000, r / 2, "large", cap=False
        )
        rows.append(
            f"| {r:g} | {r / (1 + r):.3f} | {1 - math.exp(-r):.3f} | {mean.item():.3f} "
            f"| {1 / (1 + r):.3f} | {(1 - math.exp(-2 * r)) / (2 * r):.3f} | "
            f"{covariance.item():.3f} |"
        )
    return rows


def exact_limit_rows() -> list[str]:
    """Return rows for a posterior of unit covariance.

    Algorithm 1 then differs from the posterior only by the step size.
    """
    A, sigma_y = row_operator(BoxBlur(5)), 1.3
    problem = Problem(torch.linalg.inv(torch.eye(SIDE).double() - A.T @ A / sigma_y**2), A, sigma_y)
    rows = []
    for n in (25, 50, 100, 250, 1000):
        results = (
            problem.compare(n, problem.likelihood_scale, variance)
            for variance in ("small", "large")
        )
        rows.append(
            f"| {n} | {' | '.join(f'{bias:.3f} | {ratio:.3f}' for bias, ratio, _ in results)} |"
        )
    return rows


def photograph_tables() -> list[str]:
    """Return tables for the smooth prior and our operators, over s, steps and variance."""
    lines = []
    for name, degradation, levels in (
        ("deblur (5 taps)", BoxBlur(5), 10),
        ("deblur (5 taps)", BoxBlur(5), 50),
        ("sr4", SuperResolution(4), 2),
    ):
        problem = Problem(smooth_prior(), row_operator(degradation), levels / 127.5)
        norm = torch.linalg.matrix_norm(problem.A, 2).item()
        lines += [
            "",
            f"**{name}**, noise of {levels} grey levels, norm of A {norm:.2f}, 1/(2 sigma_y^2) = "
            f"{problem.likelihood_scale:.3g}; posterior samples have a residual of "
            f"{problem.posterior_residual():.2f}.",
            "",
            "| s, in 1/(2 sigma_y^2) | n_steps | variance | bias | covariance ratio | residual |",
            "|---|---|---|---|---|---|",
        ]
        for factor in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0):
            for n, variance in ((50, "small"), (50, "large"), (1000, "small"), (1000, "large")):
                bias, ratio, rest = problem.compare(n, factor * problem.likelihood_scale, variance)
                lines.append(
                    f"| {factor:g} | {n} | {variance} | {bias:.2f} | {ratio:.2f} | {rest:.2f} |"
                )
    return lines


def level_rows() -> list[str]:
    """Return rows for the two readings of the paper's index: deblurring with noise 10."""
    problem = Problem(smooth_prior(), row_operator(BoxBlur(5)), 10 / 127.5)
    rows = []
    for n in (50, 250, 1000):
        for factor in (0.1, 1.0):
            results = (
                problem.compare(n, factor * problem.likelihood_scale, "small", level)
                for level in LEVELS
            )
            rows.append(
                f"| {n} | {factor:g} | "
                f"{' | '.join(f'{b:.2f} | {c:.2f} | {d:.2f}' for b, c, d in results)} |"
            )
    return rows


def noise_rows() -> list[str]:
    """Return rows with less noise than Algorithm 1's, at 0.3 of the likelihood's scale."""
    rows = []
    for name, degradation, levels in (("deblur", BoxBlur(5), 10), ("sr4", SuperResolution(4), 2)):
        problem = Problem(smooth_prior(), row_operator(degradation), levels / 127.5)
        for n in (50, 1000):
            for eta, temperature in ((1, 1), (0.5, 1), (0, 1), (1, 0.5), (1, 0)):
                s = 0.3 * problem.likelihood_scale
                bias, ratio, rest = problem.compare(n, s, "small", eta=eta, temperature=temperature)
                rows.append(
                    f"| {name} | {n} | {eta:g} | {temperature:g} | {bias:.2f} | {ratio:.2f} | "
                    f"{rest:.2f} |"
                )
    return rows


LEVELS = ("mean", "current")
TEXT = """# Algorithm 1 on Gaussian priors, against the closed-form posterior

With the ideal denoiser of a Gaussian prior the mean and covariance of Algorithm 1's samples follow from an affine
recursion, so these figures have no sampling error. No clipping of x0. In units of [-1, 1], where 1 is 127.5 grey levels.

## Where it is exact

- Without guidance (s = 0 or A = 0): the prior, with an error of first order in the step. At any number of steps for
  N(0, I) with `variance=large`, except for the 1e-4 of the last step, which returns its mean.
- If the posterior has unit covariance, S^-1 + A^T A / sigma_y^2 = I, and s = 1/(2 sigma_y^2). In each direction the exact
  guidance would replace 2 s by S / (sigma_y^2 C_t + S (1 - ab_t) a^2), with C_t = ab_t S + 1 - ab_t. Only for unit
  covariance is this the same at all t. First order in the step:

| n_steps | small: bias | small: covariance ratio | large: bias | large: covariance ratio |
|---|---|---|---|---|
{exact}

- For weak measurements of N(0, I), to first order in r = a^2 / sigma_y^2 (next table).
- For noise-free measurements by an A whose singular values are equal, if the prior does not correlate the range of A with its
  null space: guidance at the cap leaves 0.1 of the residual per step, so A x = y in the end, and the rest is the prior.

## Where it is not: a unit prior

One pixel, N(0, 1), y = a x + e, s = 1/(2 sigma_y^2), r = a^2 / sigma_y^2. In the continuous limit the moments of
Algorithm 1 have a closed form: mean (1 - exp(-r)) y/a, variance (1 - exp(-2 r)) / (2 r). Means in units of y/a.

| r | mean: posterior | mean: limit | mean: 1000 steps | variance: posterior | variance: limit | variance: 1000 steps |
|---|---|---|---|---|---|---|
{unit}

Guidance that ignores the uncertainty of x0_hat at high noise is too strong there: the mean is too close to y, and for
strong measurements the variance is half of the right value.

## A prior like a row of a photograph

N(0, S) with power 1 / (k^2 + 1/4), variance 0.25, {side} pixels; our operators along the row; cap on; figures over
{draws} draws of x and y. Bias in posterior standard deviations (0 is right), covariance ratio (1 is right, less is
overconfident), rms(A x - y) over sigma_y.
{photograph}

## The two readings of the index

Deblurring as in the first table, `variance=small`; `measurement_level=mean` and `current`.

| n_steps | s, in 1/(2 sigma_y^2) | mean: bias | mean: ratio | mean: residual | current: bias | current: ratio | current: residual |
|---|---|---|---|---|---|---|---|
{level}

## Less noise

`eta` and `temperature` of the sampler, at 0.3 of 1/(2 sigma_y^2), `variance=small`; noise of 10 grey levels for deblur, 2 for sr4.

| task | n_steps | eta | temperature | bias | covariance ratio | residual |
|---|---|---|---|---|---|---|
{noise}

Unguided, the samples tend to the prior N(m, S) at any eta, and to N(m, temperature^2 S) at eta = 1 (adir/samplers/adir.py).
With guidance, a lower temperature keeps the mean and scales the covariance. A lower eta moves the mean, because guidance of
the same s then fits the noise of deblurring. If y has almost no noise (sr4), the spread is that of the prior.

## What follows

{conclusion}

{made}. Command: `OMP_NUM_THREADS=1 python benchmarks/quality/gaussian_prior.py`
"""
CONCLUSION = """The likelihood's own scale, s = 1/(2 sigma_y^2), is an upper end, not a default. With many steps the
samples are then closer to y than the truth is (residual below 1), so they fit its noise, and the mean of
deblurring is off by half a posterior standard deviation. About a third of this scale is best for both blurs: the mean is
right within about 0.2, and the residual is a little above the noise level. An s tuned until the residual equals the noise
level (the discrepancy principle) is therefore slightly too strong. At a hundredth of the scale, bias and residual are many
times larger: guidance that is too weak costs more than guidance that is too strong. If the noise is very small (sr4), the
mean is right within 0.1 from a thirtieth of the scale on, and more guidance only lowers the residual. At 50 steps the spread
of the samples depends on the variance more than on s: at the likelihood's scale `small` gives two thirds of the posterior's
variance and, for little noise, `large` one and a half times; at 1000 steps they agree. The cap acts on most of 50 steps and
makes strong guidance usable there. The two readings of the index differ a little at 50 steps (`mean` is nearer to the
posterior) and not at 1000. All this holds for an ideal denoiser and a Gaussian prior: it bounds what tuning s can do, and
does not cover a network's errors."""


def main() -> None:
    """Compute, print, and write the report if --out is given."""
    parser = parser_of(__doc__)
    arguments = parser.parse_args()
    parts = {
        "exact": exact_limit_rows(),
        "unit": unit_prior_rows(),
        "photograph": photograph_tables(),
        "level": level_rows(),
        "noise": noise_rows(),
    }
    text = TEXT.format(
        **{name: "\n".join(lines) for name, lines in parts.items()},
        side=SIDE, draws=DRAWS, conclusion=CONCLUSION, made=made_on(),
    )  # fmt: skip
    publish(text, arguments.out)


if __name__ == "__main__":
    main()
