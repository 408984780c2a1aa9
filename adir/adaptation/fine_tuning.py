"""Few-shot fine-tuning of a backbone on a handful of images: settings and training."""

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
from adir.checks import require_positive, require_whole
from adir.tasks.base import Task

if TYPE_CHECKING:
    import pytorch_lightning as pl


@dataclass(frozen=True)
class Adapted:
    """Trained adapter, and the facts about its training that are saved with the results."""

    tensors: dict[str, Tensor]
    losses: list[float]
    """The `denoising_loss` at each iteration. Lower is better."""
    layers: list[str]
    n_parameters: int
    crop_size: int
    """The side of the training crops in pixels."""
    crop_size_reason: str | None
    """One line on why `crop_size` is less than requested, or None if it is not."""
    held_out: "HeldOut | None" = None
    """The evaluation on held-out images; None if no image was held out."""

    @property
    def gated_strata(self) -> list[dict[str, float]] | None:
        """The held-out losses per range of timesteps, if they gate the adapter; otherwise None.

        A gated adapter is applied only in the ranges where it lowers the loss (see `in_place` in
        adir.adaptation.base). With None, the adapter is applied at every timestep.
        """
        return self.held_out.strata if self.held_out is not None and self.held_out.gate else None


@dataclass(frozen=True)
class HeldOut:
    """Losses of a tuned denoiser on held-out images, and the decisions that follow from them.

    An update is the change of the weights by tuning. A relative loss is the tuned denoiser's loss
    divided by the untuned denoiser's. A relative loss below 1 is an improvement.
    """

    losses: dict[int, float]
    """The map {iteration: relative held-out loss of the averaged weights}."""
    kept_iteration: int
    """The iteration of lowest loss."""
    alphas: dict[float, float]
    """The map {alpha: relative held-out loss of alpha times the update of `kept_iteration`}."""
    alpha: float
    """The factor by which the update is scaled; 0 gives the untuned denoiser."""
    gate: bool
    """Whether the adapter is applied only in `strata` whose `adapted` is below `untuned`."""
    fall: float
    """The mean decrease of the relative loss, on fresh crops, timesteps and noise."""
    standard_error: float
    """The standard error of `fall`.

    An update whose `fall` does not exceed it is rejected: alpha is 0.
    """
    strata: list[dict[str, float]]
    """One dictionary per range of timesteps, from `t_first` to `t_last`, both inclusive.

    `untuned` and `adapted` are the undivided losses of the untuned and the tuned denoiser, averaged
    over all held-out crops of the range. For a rejected update, `adapted` is the loss that the
    update would have given.
    """


def varied(
    images: list[Tensor],
    variants: Callable[[Tensor], list[Tensor]],
    crop_size: int,
    stride: int,
    names: Sequence[str] | None,
) -> tuple[list[Tensor], list[str] | None]:
    """Return (variants of all images, their names), leaving out variants that are too small.

    The variants of an image are its resized and rotated versions. A variant is too small if the
    side of its largest crop is less than 3/4 of the side of the crops from the original images.

    Args:
        images: original images, (3, H, W) each.
        variants: function from one image to its variants.
        crop_size: requested side of the crops in pixels.
        stride: stride of the network in pixels; the sides of crops are multiples of it.
        names: name of each image; its variants get the same name. With None, None is returned.
    """
    side, _ = crop_side(images, crop_size, stride, names)
    kept = [
        (place, z)
        for place, image in enumerate(images)
        for z in variants(image)
        if min(z.shape[-2:]) // stride * stride >= 0.75 * side
    ]
    return [z for _, z in kept], None if names is None else [names[place] for place, _ in kept]


def without_variants(image: Tensor) -> list[Tensor]:
    """Return a list that contains only this image, for training without variants."""
    return [image]


@dataclass(frozen=True)
class FineTuning:
    """Settings of ADIR's few-shot fine-tuning; the defaults are those of version 2 of the paper.

    The settings apply to pixel and latent backbones. The contents of a training example differ
    between the two: see adir.adaptation.crops (pixel) and adir.adaptation.latent (latent).

    Attributes:
        n_iterations: number of iterations of Adam.
        batch_size: number of crops in each iteration.
        learning_rate: learning rate of Adam.
        crop_size: requested side of the training crops in pixels.
        flip: mirror half of the crops.
    """

    name: ClassVar[str] = "denoising"
    version: ClassVar[int] = 1
    """A cell's identity contains this version. Raise it if a change of the class alters results."""
    n_extra_images: ClassVar[int] = 0
    """The number of extra corpus images that `fit` needs to validate training on one image.

    It is 0, because this class accepts the trained adapter without validation. The subclass
    `SafeFineTuning` needs some, which are drawn at random.
    """
    n_iterations: int = 400
    batch_size: int = 6
    learning_rate: float = 1e-4
    crop_size: int = 256
    flip: bool = True

    def __post_init__(self) -> None:
        # Lightning would train without end if n_iterations were -1.
        require_whole(0, n_iterations=self.n_iterations)
        require_whole(1, batch_size=self.batch_size, crop_size=self.crop_size)
        require_positive(learning_rate=self.learning_rate)

    @property
    def held_out_share(self) -> float:
        """The cost of evaluating held-out images, divided by that of training: 0 in this class."""
        return 0.0

    def n_training_images(self, k: int, n: int) -> int:
        """Return how many of the k nearest of n corpus images to tune on: in this class, k."""
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
        variants: Callable[[Tensor], list[Tensor]] = without_variants,
    ) -> Adapted:
        """Train the adapter on the images, restore the backbone, and return the trained adapter.

        Args:
            backbone: the backbone to adapt.
            adapter: the adapter to train.
            images: (3, H, W) in [-1, 1], nearest first.
            generator: the only source of randomness.
            callbacks: callbacks of Lightning's trainer.
            progress: whether to show a progress bar.
            task: the task of the test image. Latent backbones need its operator or prompt. Pixel
                backbones ignore it.
            names: names of the images, for error messages.
            others: `n_extra_images` other images of the corpus, on which `SafeFineTuning` validates
                the training.
            variants: function from an image to the list of versions to train on, such as rotations
                by 0, 90, 180 and 270 degrees. By default the list contains only the image.

        Raises:
            FloatingPointError: if the loss is NaN or Inf.
            InputError: if an image is too small.
            ValueError: if there are no images or the adapter fits no layer.
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
            # Lightning moves a network to the CPU after training it on a GPU.
            backbone.network.to(backbone.device)
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
            backbone: the backbone, with the adapter attached.
            attached: the attached adapter.
            examples: an endless stream of training examples.
            callbacks: callbacks of Lightning's trainer.
            progress: whether to show a progress bar.
            clipping: norm to which larger gradients are clipped; None disables clipping.
        """
        # Imported here, because Lightning takes longer to import than torch and most commands
        # train nothing.
        from adir.adaptation.denoising_module import DenoisingModule, quiet_trainer

        module = DenoisingModule(
            backbone.network, backbone.denoising_loss, attached.parameters(), self.optimizer
        )
        if self.n_iterations:
            with warnings.catch_warnings():
                # The three warnings do not matter. The network stays in eval mode because
                # adaptation uses no dropout. One process makes the crops because they are cheap
                # and drawn in the order that the seed determines. The deprecated call (LeafSpec)
                # is Lightning's own.
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
        """Return (Adam, function from an iteration to a factor of the learning rate).

        In this class the factor is always 1.
        """
        return torch.optim.Adam(parameters, lr=self.learning_rate), lambda iteration: 1.0


def adapted_of(
    attached: Attached,
    tensors: dict[str, Tensor],
    losses: list[float],
    examples: Any,
    held_out: HeldOut | None = None,
) -> Adapted:
    """Return the `Adapted` of a finished training run.

    Args:
        attached: the adapter, which gives the names of layers and the number of parameters.
        tensors: the trained tensors.
        losses: the loss of each iteration.
        examples: the stream of crops, which knows their side in pixels, and why the side is smaller
            than requested, if it is.
        held_out: the evaluation on held-out images, if there was one.
    """
    return Adapted(
        tensors=tensors,
        losses=losses,
        layers=attached.layers,
        n_parameters=sum(parameter.numel() for parameter in attached.parameters()),
        crop_size=examples.size,
        crop_size_reason=examples.remark,
        held_out=held_out,
    )
