"""Few-shot fine-tuning of a backbone on a handful of pictures: settings, training examples, and the fit."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adir.adaptation.base import Adapter
from adir.adaptation.crops import NoisyCrops
from adir.backbones.base import Backbone
from adir.tasks.base import Task

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from adir.adaptation.latent import LatentCrops


def training_examples(
    backbone: Backbone,
    pictures: list[Tensor],
    crop_size: int,
    flip: bool,
    generator: torch.Generator,
    task: Task | None,
    names: Sequence[str] | None,
) -> "NoisyCrops | LatentCrops":
    """The endless stream of what the backbone's `denoising_loss` takes."""
    if backbone.kind == "latent":
        from adir.adaptation.latent import latent_crops  # here: it brings Stable Diffusion's networks, 4 s of imports

        return latent_crops(backbone, pictures, crop_size, flip, generator, task, names)
    return NoisyCrops(pictures, crop_size, backbone.stride, len(backbone.schedule), flip, generator, names)


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


@dataclass(frozen=True)
class FineTuning:
    """The paper's few-shot fine-tuning; its defaults are those of v2 (Adam, 1e-4, 400 iterations of batch 6).

    crop_size: side of the training crops in pixels.  flip: mirror half of them.  What an example is besides depends on the
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

    def fit(
        self,
        backbone: Backbone,
        adapter: Adapter,
        pictures: list[Tensor],
        generator: torch.Generator,
        callbacks: "list[pl.Callback] | None" = None,
        progress: bool = False,
        task: Task | None = None,
        names: Sequence[str] | None = None,
    ) -> Adapted:
        """The adapter trained on `pictures` ((3, H, W) in [-1, 1]); the backbone is as it was when this returns.

        task: the test picture's own; latent backbones need its operator or prompt, pixel ones ignore it.  names: of the
        pictures, for errors.  Everything random comes from `generator`. Raises FloatingPointError when the loss is NaN or
        Inf, InputError for a picture that is too small, ValueError when there are none or the adapter fits no layer.
        """
        # Here: Lightning takes longer to import than torch, and most commands train nothing.
        from adir.adaptation.denoising_module import DenoisingModule, quiet_trainer

        if not pictures:
            raise ValueError("adaptation needs at least one picture")
        attached = adapter.attach(backbone.network)
        try:
            attached.initialise(generator)
            examples = training_examples(backbone, pictures, self.crop_size, self.flip, generator, task, names)

            def optimizer(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
                return torch.optim.Adam(parameters, lr=self.learning_rate)

            module = DenoisingModule(backbone.network, backbone.denoising_loss, attached.parameters(), optimizer)
            if self.n_iterations:
                with warnings.catch_warnings():
                    # The network stays in eval mode (no dropout in adaptation), one process makes the crops (they cost
                    # nothing, and their order is their seed), and the deprecation is Lightning's own.
                    for message in (".*in eval mode.*", ".*does not have many workers.*", ".*LeafSpec.*"):
                        warnings.filterwarnings("ignore", message=message)
                    trainer = quiet_trainer(self.n_iterations, backbone.execution, callbacks or [], progress)
                    trainer.fit(module, DataLoader(examples, batch_size=self.batch_size))
            return Adapted(
                tensors=attached.tensors(),
                losses=module.losses,
                layers=attached.layers,
                n_parameters=sum(parameter.numel() for parameter in attached.parameters()),
                crop_size=examples.size,
                crop_remark=examples.remark,
            )
        finally:
            backbone.network.to(backbone.device)  # Lightning leaves a network it trained on a GPU on the CPU
            attached.remove()
