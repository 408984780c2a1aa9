"""Few-shot fine-tuning of a backbone on a handful of images: settings, training examples, and the
fit.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adir.adaptation.base import Adapter, Attached
from adir.adaptation.crops import crop_side
from adir.adaptation.examples import training_examples
from adir.backbones.base import Backbone
from adir.tasks.base import Task

if TYPE_CHECKING:
    import pytorch_lightning as pl


@dataclass(frozen=True)
class Adapted:
    """A trained adapter, ready to be stored."""

    tensors: dict[str, Tensor]
    losses: list[float]
    """`denoising_loss` at each iteration. Lower is better."""
    layers: list[str]
    n_parameters: int
    crop_size: int
    """Side of the crops it was trained on, in pixels."""
    crop_remark: str | None
    """One line on why that is less than was asked for."""
    held_out: "HeldOut | None" = None
    """What held-out images said of it; None where nothing was held out."""

    @property
    def gated_strata(self) -> list[dict[str, float]] | None:
        """The held-out losses that say at which timesteps the adapter is used; None: at all of
        them.
        """
        return self.held_out.strata if self.held_out is not None and self.held_out.gate else None


@dataclass(frozen=True)
class HeldOut:
    """How held-out images chose the update.

    Losses are relative to the untuned denoiser's: below 1 is better than untuned.
    """

    losses: dict[int, float]
    """{iteration: relative held-out loss of the averaged weights}."""
    kept_iteration: int
    """The iteration of lowest loss."""
    alphas: dict[float, float]
    """{alpha: relative held-out loss of the update of that iteration, scaled by alpha}."""
    alpha: float
    """The factor in use; 0 is the untuned denoiser."""
    gate: bool
    """Whether the adapter is in place only where `adapted` is below `untuned` in `strata`."""
    fall: float
    """Mean fall of the relative loss on fresh crops, timesteps and noise."""
    standard_error: float
    """Of `fall`. An update whose fall does not exceed it is rejected: alpha is 0."""
    strata: list[dict[str, float]]
    """For each range of timesteps `t_first`, `t_last` (both inclusive), and the losses `untuned`
    and `adapted`, on all held-out crops. A rejected update has its `adapted` too.
    """


def varied(
    images: list[Tensor],
    variants: Callable[[Tensor], list[Tensor]],
    crop_size: int,
    stride: int,
    names: Sequence[str] | None,
) -> tuple[list[Tensor], list[str] | None]:
    """Return the variants of all images, and their names, without those that hold no crop of three
    quarters of the images' own.

    Args:
        images: (3, H, W).
        variants: of one image.
        crop_size: side of the crops in pixels, where the images are large enough.
        stride: of the network; sides of crops are multiples of it.
        names: of the images, which their variants share.
    """
    side, _ = crop_side(images, crop_size, stride, names)
    kept = [
        (place, z)
        for place, image in enumerate(images)
        for z in variants(image)
        if min(z.shape[-2:]) // stride * stride >= 0.75 * side
    ]
    return [z for _, z in kept], None if names is None else [names[place] for place, _ in kept]


def itself(image: Tensor) -> list[Tensor]:
    """Return the image alone: no variants of it are trained on."""
    return [image]


@dataclass(frozen=True)
class FineTuning:
    """The paper's few-shot fine-tuning; its defaults are those of v2 (Adam, 1e-4, 400 iterations of
    batch 6).

    crop_size: side of the training crops in pixels.  flip: mirror half of them.  What an example is
        besides depends on the
    backbone (adir.adaptation.crops, adir.adaptation.latent).
    """

    name: ClassVar[str] = "denoising"
    version: ClassVar[int] = 1
    """Raise it when a change of this class changes its result."""
    n_iterations: int = 400
    batch_size: int = 6
    learning_rate: float = 1e-4
    crop_size: int = 256
    flip: bool = True

    def __post_init__(self) -> None:
        # Lightning takes -1 iterations for "without end".
        for what, least in (("n_iterations", 0), ("batch_size", 1), ("crop_size", 1)):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{what}={value!r}: a whole number of at least {least} is needed")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate!r}: a positive number is needed")

    @property
    def n_others(self) -> int:
        """Images of the corpus, drawn at random, that `fit` wants besides a single neighbour to
        judge the update by.
        """
        return 0

    @property
    def held_out_share(self) -> float:
        """Cost of the held-out work over that of the training: there is none."""
        return 0.0

    def usable(self, k: int, n: int) -> int:
        """Return how many of the k nearest of n images are tuned on: all."""
        return k

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
        variants: Callable[[Tensor], list[Tensor]] = itself,
    ) -> Adapted:
        """Return the adapter trained on images; the backbone is as it was when this returns.

        Args:
            backbone: to be adapted.
            adapter: what is trained.
            images: (3, H, W) in [-1, 1], nearest first.
            generator: draws all that is random.
            callbacks: of Lightning's trainer.
            progress: show a bar.
            task: the test image's own; latent backbones need its operator or prompt, pixel ones
                ignore it.
            names: of the images, for errors.
            others: `n_others` images of the corpus.
            variants: what is trained on in place of an image, such as its turns.

        Raises FloatingPointError when the loss is NaN or Inf, InputError for an image that is too
        small, ValueError when there are none or the adapter fits no layer.
        """
        if not images:
            raise ValueError("adaptation needs at least one image")
        attached = adapter.attach(backbone.network)
        try:
            attached.initialise(generator)
            training, names = varied(images, variants, self.crop_size, backbone.stride, names)
            examples = training_examples(
                backbone, training, self.crop_size, self.flip, generator, task, names
            )
            losses = self.train(backbone, attached, examples, callbacks or [], progress)
            return adapted_of(attached, attached.tensors(), losses, examples)
        finally:
            backbone.network.to(
                backbone.device
            )  # Lightning leaves a network it trained on a GPU on the CPU
            attached.remove()

    def train(
        self,
        backbone: Backbone,
        attached: Attached,
        examples: Any,
        callbacks: "list[pl.Callback]",
        progress: bool,
        clipping: float | None = None,
    ) -> list[float]:
        """Train an attached adapter with Adam, and return the loss of each iteration.

        Args:
            backbone: that it is attached to.
            attached: the adapter.
            examples: an endless stream of crops.
            callbacks: of Lightning's trainer.
            progress: show a bar.
            clipping: largest norm of the gradient; None leaves it as it is.
        """
        # Here: Lightning takes longer to import than torch, and most commands train nothing.
        from adir.adaptation.denoising_module import DenoisingModule, quiet_trainer

        module = DenoisingModule(
            backbone.network, backbone.denoising_loss, attached.parameters(), self.optimizer
        )
        if self.n_iterations:
            with warnings.catch_warnings():
                # The network stays in eval mode (no dropout in adaptation), one process makes the
                # crops (they cost nothing, and their order is their seed), and the deprecation is
                # Lightning's own.
                for message in (
                    ".*in eval mode.*",
                    ".*does not have many workers.*",
                    ".*LeafSpec.*",
                ):
                    warnings.filterwarnings("ignore", message=message)
                trainer = quiet_trainer(
                    self.n_iterations, backbone.execution, callbacks, progress, clipping
                )
                trainer.fit(module, DataLoader(examples, batch_size=self.batch_size))
        return module.losses

    def optimizer(
        self, parameters: list[torch.nn.Parameter]
    ) -> "tuple[torch.optim.Optimizer, Callable[[int], float]]":
        """Return the optimiser of the parameters, and the factor of its learning rate at each
        iteration, from 0 on.
        """
        return torch.optim.Adam(parameters, lr=self.learning_rate), lambda iteration: 1.0


def adapted_of(
    attached: Attached,
    tensors: dict[str, Tensor],
    losses: list[float],
    examples: Any,
    held_out: HeldOut | None = None,
) -> Adapted:
    """Return a trained adapter with these tensors."""
    return Adapted(
        tensors=tensors,
        losses=losses,
        layers=attached.layers,
        n_parameters=sum(parameter.numel() for parameter in attached.parameters()),
        crop_size=examples.size,
        crop_remark=examples.remark,
        held_out=held_out,
    )
