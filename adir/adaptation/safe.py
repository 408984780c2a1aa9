"""Few-shot fine-tuning validated on held-out images.

The loss on the held-out images decides which iteration of the training is kept, how far its update
of the weights is scaled down, and whether it is used at all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from adir.adaptation.base import Adapter
from adir.adaptation.examples import training_examples
from adir.adaptation.fine_tuning import (
    Adapted,
    FineTuning,
    HeldOut,
    adapted_of,
    varied,
    without_variants,
)
from adir.adaptation.held_out import (
    N_STRATA,
    HeldOutCrops,
    improvement_and_error,
    relative_loss,
    split,
)
from adir.backbones.base import Backbone
from adir.checks import require_whole
from adir.tasks.base import Task

if TYPE_CHECKING:
    import pytorch_lightning as pl

ALPHAS = (0.25, 0.5, 0.75, 1.0)
# Largest cost of the held-out evaluation, as a share of the training's cost.
HELD_OUT_SHARE = 0.3
# Share of the held-out evaluation that chooses iteration and alpha. The rest accepts or rejects.
CHOOSING_SHARE = 0.65
# Cost of training on one crop for one iteration, in evaluations of the network (measured with the
# embedded prior on a CPU).
TRAINING_COST = 2.2


@dataclass(frozen=True)
class SafeFineTuning(FineTuning):
    """Fine-tuning that accepts an update of the weights only if it helps on held-out images.

    The ground truth of the test image is not used. The steps are:

    1. Hold out every fifth image. If there are fewer than ten images, hold out a part of each image
    instead. Training crops never overlap held-out parts.

    2. Train, and measure the relative loss of the averaged weights after 0, 5, 10, 20, 40, ...
    iterations. The crops, noise and timesteps for this are drawn once, in each of 8 strata (ranges
    of timesteps). The relative loss is the loss divided by the untuned denoiser's loss in the same
    stratum, averaged over the strata.

    3. Keep the weights with the lowest relative loss. Their update is their difference from the
    untuned weights. Scale it by the factor alpha in {0, 1/4, 1/2, 3/4, 1} with the lowest relative
    loss.

    4. Draw fresh crops, noise and timesteps. Accept the scaled update if it decreases the loss on
    them by more than one standard error over the held-out images. Otherwise set alpha to 0, which
    restores the untuned denoiser.

    These steps show whether tuning on some images also improves the loss on similar images. They
    cannot detect that the retrieved images are unlike the ground truth.

    Attributes:
        n_iterations: number of iterations of Adam.
        batch_size: number of crops in each iteration.
        learning_rate: learning rate of Adam after the warm-up.
        crop_size: requested side of the crops in pixels.
        flip: mirror half of the crops.
        warm_up: number of iterations in which the learning rate rises linearly.
        decay: final learning rate divided by `learning_rate`, in (0, 1]. It is reached along half a
            cosine after the warm-up. With 1, the learning rate stays constant.
        average: decay per iteration of the exponential average of the weights, in [0, 1). With 0,
            the weights of the last iteration are used.
        clipping: norm to which larger gradients are clipped; None disables clipping.
        gate: whether to apply the adapter only in the strata in which it lowered the held-out loss.
    """

    name: ClassVar[str] = "safe"
    version: ClassVar[int] = 1
    n_extra_images: ClassVar[int] = 4
    """The number of extra corpus images that `fit` needs to validate training on one image.

    They complement the held-out part of that image, which does not show whether the update helps on
    other images.
    """
    n_iterations: int = 60
    learning_rate: float = 5e-5
    crop_size: int = 64
    warm_up: int = 20
    decay: float = 1.0
    average: float = 0.9
    clipping: float | None = 1.0
    gate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(0, warm_up=self.warm_up)
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay!r}: a number above 0 and at most 1 is needed")
        if not 0 <= self.average < 1:
            raise ValueError(
                f"average={self.average!r}: a number of at least 0 and below 1 is needed"
            )
        if self.clipping is not None and not 0 < self.clipping < math.inf:
            raise ValueError(f"clipping={self.clipping!r}: a positive number or null is needed")

    def n_training_images(self, k: int, n: int) -> int:
        """Return how many of the k nearest of n corpus images to tune on.

        The result is min(k, (n + 1) // 2). Images farther from y than the median image of the
        corpus are therefore left out.
        """
        return min(k, (n + 1) // 2)

    def optimizer(
        self, parameters: list[torch.nn.Parameter]
    ) -> "tuple[torch.optim.Optimizer, Callable[[int], float]]":
        """Return (Adam, function from an iteration to a factor of the learning rate).

        The factor rises linearly in the warm-up, then falls along half a cosine to `decay`.
        """
        falling = max(1, self.n_iterations - self.warm_up)

        def factor(iteration: int) -> float:
            rise = min(1.0, (iteration + 1) / (self.warm_up + 1))
            done = min(1.0, max(0, iteration - self.warm_up) / falling)
            return rise * (self.decay + (1 - self.decay) * (1 + math.cos(math.pi * done)) / 2)

        return torch.optim.Adam(parameters, lr=self.learning_rate), factor

    def judged_at(self) -> list[int]:
        """Return the iterations after which the held-out loss is measured.

        They are 5, 10, 20, 40, ... and the last.
        """
        doubling = [5 * 2**i for i in range(max(1, self.n_iterations).bit_length())]
        return sorted({i for i in doubling if i < self.n_iterations} | ({self.n_iterations} - {0}))

    def training_cost(self) -> float:
        """Return the cost of the training, in evaluations of the network on one crop."""
        return TRAINING_COST * self.batch_size * self.n_iterations

    def crops_per_stratum(self) -> tuple[int, int]:
        """Return (crops per stratum to choose with, fresh crops per stratum to accept with).

        A stratum is a range of timesteps. Iteration and alpha are chosen on 1 to 8 crops, which are
        evaluated `n_checks` times. The update is accepted or rejected on 1 to 16 crops, which are
        evaluated at most twice: without and with the update. If one crop per stratum allows it, the
        total cost is at most `HELD_OUT_SHARE` of the training cost.
        """
        paid = HELD_OUT_SHARE * self.training_cost() / N_STRATA
        choosing = min(8, max(1, int(CHOOSING_SHARE * paid / self.n_checks())))
        return choosing, min(16, max(1, int((paid - choosing * self.n_checks()) / 2)))

    def n_checks(self) -> int:
        """Return the largest number of evaluations of the crops that choose iteration and alpha.

        These crops are evaluated once for the untuned denoiser, once for each iteration in
        `judged_at`, and once for each alpha strictly between 0 and 1.
        """
        return 1 + len(self.judged_at()) + len(ALPHAS) - 1

    @property
    def held_out_share(self) -> float:
        """The cost of evaluating held-out images, divided by that of training.

        It is at most `HELD_OUT_SHARE` (0.3). With very few iterations it is larger, because each
        stratum (range of timesteps) has at least one crop. With 0 iterations it is 0.
        """
        if self.n_iterations == 0:
            return 0.0
        choosing, accepting = self.crops_per_stratum()
        return (choosing * self.n_checks() + 2 * accepting) * N_STRATA / self.training_cost()

    def fit(
        self,
        backbone: Backbone,
        adapter: Adapter,
        images: list[Tensor],
        generator: torch.Generator,
        callbacks: "list[pl.Callback] | None" = None,
        progress: bool = False,
        task: Task | None = None,
        names: Sequence[str] | None = None,
        others: Sequence[Tensor] = (),
        variants: Callable[[Tensor], list[Tensor]] = without_variants,
    ) -> Adapted:
        """Train, choose and validate the adapter in the steps of this class, and return it.

        For the parameters see `FineTuning.fit`.
        """
        # Imported here, because it imports Lightning.
        from adir.adaptation.denoising_module import AveragedWeights

        if not images:
            raise ValueError("adaptation needs at least one image")
        # Split the images into a part to train on and a part to judge on.
        parts = split(images, self.crop_size, backbone.stride, generator)
        names = None if names is None else [names[place] for place in parts.places]
        training, names = varied(parts.training, variants, self.crop_size, backbone.stride, names)
        judges = [*parts.held_out, *others]
        attached = adapter.attach(backbone.network)
        try:
            attached.initialise(generator)
            examples = training_examples(
                backbone, training, self.crop_size, self.flip, generator, task, names
            )

            held_out, fresh = (
                HeldOutCrops(backbone, judges, examples.size, n, generator, task)
                for n in self.crops_per_stratum()
            )
            untuned, untuned_fresh = held_out.losses(), fresh.losses()
            losses, best, best_losses = {0: 1.0}, attached.tensors(), untuned

            def judge(iteration: int) -> None:
                nonlocal best, best_losses
                now = held_out.losses()
                losses[iteration] = relative_loss(now, untuned)
                if losses[iteration] == min(losses.values()):
                    best, best_losses = attached.tensors(), now

            averaged = AveragedWeights(attached.parameters(), self.average, self.judged_at(), judge)
            training_losses = self.train(
                backbone,
                attached,
                examples,
                [*(callbacks or []), averaged],
                progress,
                self.clipping,
            )
            # Lightning moves a network to the CPU after training it on a GPU.
            backbone.network.to(backbone.device)

            # Choose the iteration, then the factor alpha of its update.
            kept = min(losses, key=lambda iteration: losses[iteration])
            scaled = {0.0: untuned, 1.0: best_losses}
            for alpha in ALPHAS[:-1] if kept else ():
                attached.load(attached.scaled(best, alpha))
                scaled[alpha] = held_out.losses()
            alphas = {alpha: relative_loss(scaled[alpha], untuned) for alpha in sorted(scaled)}
            alpha = min(alphas, key=lambda alpha: alphas[alpha])
            attached.load(attached.scaled(best, alpha))
            # Accept or reject on fresh crops. At alpha = 0 the network equals the untuned one bit
            # for bit, so its losses are known.
            tuned, tuned_fresh = scaled[alpha], fresh.losses() if alpha > 0 else untuned_fresh
            fall, error = improvement_and_error(tuned_fresh, untuned_fresh, fresh.images)
            facts = HeldOut(
                losses=losses,
                kept_iteration=kept,
                alphas=alphas,
                alpha=alpha if fall > error else 0.0,
                gate=self.gate,
                fall=fall,
                standard_error=error,
                strata=[
                    {
                        "t_first": ts.start,
                        "t_last": ts.stop - 1,
                        "untuned": float(before),
                        "adapted": float(after),
                    }
                    for ts, before, after in zip(
                        held_out.strata,
                        torch.cat([untuned, untuned_fresh], 1).mean(1),
                        torch.cat([tuned, tuned_fresh], 1).mean(1),
                        strict=True,
                    )
                ],
            )
            return adapted_of(
                attached, attached.scaled(best, facts.alpha), training_losses, examples, facts
            )
        finally:
            backbone.network.to(backbone.device)
            attached.remove()
