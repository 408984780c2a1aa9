"""Few-shot fine-tuning of a backbone with the loss it was trained with, as a Lightning module."""

import logging
import os
from collections.abc import Callable, Collection
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from adir.adaptation.exchange import exchange
from adir.backbones.execution import Execution

OptimizerFactory = Callable[
    [list[torch.nn.Parameter]], tuple[torch.optim.Optimizer, Callable[[int], float]]
]
"""From parameters, makes their optimiser and the function that gives its learning rate's factor at
an iteration.
"""
Loss = Callable[[Any], Tensor]


class DenoisingModule(pl.LightningModule):
    """Minimises sum_k sum_t ||eps - eps_theta(sqrt(alpha_bar_t) z_k + sqrt(1 - alpha_bar_t) eps,
    t)||^2 over `parameters`.

    ADIR (arXiv 2212.03221): z_k are the K neighbours of y, or y itself; `loss` is this sum on one
    batch, the backbone's `denoising_loss`. Its value at each iteration is in `losses`.
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
            raise FloatingPointError(
                f"adaptation diverged at iteration {len(self.losses)}: lower the learning rate"
            )
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser that was handed in, on the adapter's parameters, with its schedule."""
        optimizer, factor = self._optimizer(self._trainable)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class AveragedWeights(pl.Callback):
    """Exponential average of the trained parameters, judged at some iterations.

    The average starts from the first iterate: it is the plain mean of the iterates as long as that
    forgets faster, so that the untuned weights have no part in it.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        decay: float,
        judge_at: Collection[int],
        judge: Callable[[int], None],
    ):
        """Watch a training.

        Args:
            parameters: those that train.
            decay: of the average at each iteration, in [0, 1); 0 is the last iterate itself.
            judge_at: iterations after which `judge` is called, counted from 1.
            judge: called with the iteration while the averaged weights are in place.
        """
        self._parameters, self._decay, self._judge_at, self._judge = (
            parameters,
            decay,
            frozenset(judge_at),
            judge,
        )
        self._average: list[torch.Tensor] = []
        self._iteration = 0

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the new weights into the average, and have it judged where it is time."""
        self._iteration += 1
        now = [parameter.detach() for parameter in self._parameters]
        if not self._average:
            self._average = [tensor.clone() for tensor in now]
        else:
            for average, tensor in zip(self._average, now, strict=True):
                average.lerp_(tensor, max(1 - self._decay, 1 / self._iteration))
        if self._iteration in self._judge_at:
            put_back = exchange(list(zip(self._parameters, self._average, strict=True)))
            try:
                self._judge(self._iteration)
            finally:
                put_back()


def quiet_trainer(
    n_iterations: int,
    execution: Execution,
    callbacks: list[pl.Callback],
    progress: bool,
    clipping: float | None = None,
) -> pl.Trainer:
    """Return a Lightning trainer that writes no file and, unless `progress`, no line. clipping: of
    the gradient's norm.
    """
    device = torch.device(execution.device)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for name in [name for name in os.environ if name.startswith("PL_TRAINER_")]:
        del os.environ[name]  # Lightning takes arguments from them, such as a limit of batches
    return pl.Trainer(
        max_steps=n_iterations,
        max_epochs=1,
        precision=execution.trainer_precision,
        gradient_clip_val=clipping,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        # Not 1: Lightning would take the first GPU, whichever is this worker's.
        devices=1
        if device.type == "cpu"
        else [torch.cuda.current_device() if device.index is None else device.index],
        # One process adapts one image, whatever launched it: Lightning would find SLURM, torchrun
        # or MPI and join them.
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=callbacks,
    )
