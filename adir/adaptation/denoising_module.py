"""Few-shot fine-tuning of a backbone with DDPM's l_simple, as a Lightning module."""

import logging
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adir.adaptation.adapters import Adapter
from adir.adaptation.crops import NoisyCrops
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.diffusion.posterior import diffuse, epsilon_loss

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


class DenoisingModule(pl.LightningModule):
    """Minimises sum_k sum_t ||eps - eps_theta(sqrt(alpha_bar_t) z_k + sqrt(1 - alpha_bar_t) eps, t)||^2 over `parameters`.

    ADIR (arXiv 2212.03221): z_k are the K neighbours of y, or y itself. Logs `adaptation/loss` at each iteration and
    keeps the values in `losses`.
    """

    def __init__(self, backbone: GuidedDiffusion, parameters: list[torch.nn.Parameter], optimizer: OptimizerFactory):
        super().__init__()
        self.network = backbone.network
        self._backbone = [backbone]  # in a list: not a module, and not for Lightning to look into
        self._trainable, self._optimizer = parameters, optimizer
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int) -> Tensor:
        """Mean l_simple of one batch of `NoisyCrops`."""
        z, t, eps = batch
        backbone = self._backbone[0]
        alpha_bar = backbone.schedule.alpha_bar.to(z.device)[t].reshape(-1, 1, 1, 1)
        z_t = diffuse(z, eps, alpha_bar).to(z.dtype)  # float64 tables, float32 network
        output = self.network(z_t, t, return_dict=False)[0]
        loss = epsilon_loss(eps, backbone.prediction(output).eps).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"adaptation diverged at iteration {len(self.losses)}: lower the learning rate")
        self.losses.append(loss.item())
        self.log("adaptation/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that was handed in, on the adapter's parameters."""
        return self._optimizer(self._trainable)


@dataclass(frozen=True)
class Adapted:
    """A trained adapter, ready to be stored."""

    tensors: dict[str, Tensor]
    losses: list[float]
    """l_simple at each iteration."""
    layers: list[str]
    n_parameters: int


@dataclass(frozen=True)
class FineTuning:
    """The paper's few-shot fine-tuning; its defaults are those of v2 (Adam, 1e-4, 400 iterations of batch 6).

    crop_size: side of the training crops in pixels.  flip: mirror half of them.
    """

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
        backbone: GuidedDiffusion,
        adapter: Adapter,
        pictures: list[Tensor],
        generator: torch.Generator,
        callbacks: list[pl.Callback] | None = None,
        progress: bool = False,
    ) -> Adapted:
        """The adapter trained on `pictures` ((3, H, W) in [-1, 1]); the backbone is as it was when this returns.

        Everything random comes from `generator`. Raises FloatingPointError when the loss is NaN or Inf, ValueError when
        there are no pictures or the adapter fits no layer.
        """
        if not pictures:
            raise ValueError("adaptation needs at least one picture")
        attached = adapter.attach(backbone.network)
        try:
            attached.initialise(generator)
            crops = NoisyCrops(pictures, self.crop_size, backbone.stride, len(backbone.schedule), self.flip, generator)

            def optimizer(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
                return torch.optim.Adam(parameters, lr=self.learning_rate)

            module = DenoisingModule(backbone, attached.parameters(), optimizer)
            if self.n_iterations:
                with warnings.catch_warnings():
                    # The network stays in eval mode (no dropout in adaptation), one process makes the crops (they cost
                    # nothing, and their order is their seed), and the deprecation is Lightning's own.
                    for message in (".*in eval mode.*", ".*does not have many workers.*", ".*LeafSpec.*"):
                        warnings.filterwarnings("ignore", message=message)
                    quiet_trainer(self.n_iterations, backbone.device, callbacks or [], progress).fit(
                        module, DataLoader(crops, batch_size=self.batch_size)
                    )
            return Adapted(
                tensors=attached.tensors(),
                losses=module.losses,
                layers=attached.layers,
                n_parameters=sum(parameter.numel() for parameter in attached.parameters()),
            )
        finally:
            backbone.network.to(backbone.device)  # Lightning leaves a network it trained on a GPU on the CPU
            attached.remove()


def quiet_trainer(n_iterations: int, device: torch.device, callbacks: list[pl.Callback], progress: bool) -> pl.Trainer:
    """A Lightning trainer that writes no file and, unless `progress`, no line."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return pl.Trainer(
        max_steps=n_iterations,
        max_epochs=1,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.index is None else [device.index],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=callbacks,
    )
