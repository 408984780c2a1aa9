"""Few-shot fine-tuning of a backbone with the loss it was trained with, as a Lightning module."""

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from adir.backbones.execution import Execution

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[Any], Tensor]


class DenoisingModule(pl.LightningModule):
    """Minimises sum_k sum_t ||eps - eps_theta(sqrt(alpha_bar_t) z_k + sqrt(1 - alpha_bar_t) eps, t)||^2 over `parameters`.

    ADIR (arXiv 2212.03221): z_k are the K neighbours of y, or y itself; `loss` is this sum on one batch, the backbone's
    `denoising_loss`. Logs `adaptation/loss` at each iteration and keeps the values in `losses`.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: Loss,
        parameters: list[torch.nn.Parameter],
        optimizer: OptimizerFactory,
    ):
        super().__init__()
        self.network = network  # for Lightning to move to its device; `loss` calls it
        self._loss, self._trainable, self._optimizer = loss, parameters, optimizer
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of one batch. Raises FloatingPointError where it is NaN or Inf."""
        loss = self._loss(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"adaptation diverged at iteration {len(self.losses)}: lower the learning rate")
        self.losses.append(loss.item())
        self.log("adaptation/loss", loss, prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that was handed in, on the adapter's parameters."""
        return self._optimizer(self._trainable)


def quiet_trainer(n_iterations: int, execution: Execution, callbacks: list[pl.Callback], progress: bool) -> pl.Trainer:
    """A Lightning trainer that writes no file and, unless `progress`, no line."""
    device = torch.device(execution.device)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for name in [name for name in os.environ if name.startswith("PL_TRAINER_")]:
        del os.environ[name]  # Lightning takes arguments from them, such as a limit of batches
    return pl.Trainer(
        max_steps=n_iterations,
        max_epochs=1,
        precision=execution.trainer_precision,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        # Not 1: Lightning would take the first GPU, whichever is this worker's.
        devices=1 if device.type == "cpu" else [torch.cuda.current_device() if device.index is None else device.index],
        # One process adapts one picture, whatever launched it: Lightning would find SLURM, torchrun or MPI and join them.
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=callbacks,
    )
