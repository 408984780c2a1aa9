"""Lightning module that fine-tunes a backbone with its pretraining loss."""

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
"""A function from parameters to (optimiser, factor of the learning rate at an iteration)."""
Loss = Callable[[Any], Tensor]


class DenoisingModule(pl.LightningModule):
    """Lightning module that fine-tunes `parameters` with a backbone's denoising loss.

    The loss in the paper on ADIR (arXiv 2212.03221) is

            sum_k sum_t ||eps - eps_theta(sqrt(alpha_bar_t) z_k + sqrt(1 - alpha_bar_t) eps, t)||^2,

    in which z_k are the K neighbours of the degraded image y, or y itself. The backbones compute a
    mean over a batch of random crops and timesteps instead of this sum. The attribute `losses` is
    the list of the losses of all iterations so far.

    Args:
        network: the denoiser, which Lightning moves to its device.
        loss: function from a batch to its loss, such as the backbone's `denoising_loss`.
        parameters: the parameters to train.
        optimizer: function from parameters to (optimiser, learning-rate schedule).
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
        """Return the loss of one batch.

        Raises:
            FloatingPointError: if the loss is NaN or Inf.
        """
        loss = self._loss(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"adaptation diverged at iteration {len(self.losses)}: lower the learning rate"
            )
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser of the trained parameters, and its learning-rate schedule."""
        optimizer, factor = self._optimizer(self._trainable)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class AveragedWeights(pl.Callback):
    """Lightning callback that averages the trained parameters over the iterations.

    At first, the average is the plain mean of the parameters after each iteration so far. Once
    1 / iteration is below 1 - decay, it becomes an exponential average. The parameters before the
    first iteration are never included.

    After given iterations, the callback puts the average into the network, calls a function that
    evaluates the average, and restores the parameters.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        decay: float,
        judge_at: Collection[int],
        judge: Callable[[int], None],
    ):
        """Create the callback for one training run.

        Args:
            parameters: the trained parameters.
            decay: factor of the old average at each iteration, in [0, 1). With 0, the average is
                the parameters after the last iteration.
            judge_at: iterations, counted from 1, after which `judge` is called.
            judge: function that evaluates the average. It is called with the number of the
                iteration, while the parameters hold the average.
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
        """Update the average, and call `judge` after the iterations in `judge_at`."""
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
    """Return a Lightning trainer without logs and checkpoints, which prints at most a progress bar.

    Args:
        n_iterations: number of training iterations.
        execution: device and precision.
        callbacks: callbacks of the trainer.
        progress: whether to show a progress bar.
        clipping: norm to which larger gradients are clipped; None disables clipping.
    """
    device = torch.device(execution.device)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for name in [name for name in os.environ if name.startswith("PL_TRAINER_")]:
        del os.environ[name]  # Lightning would read arguments from them, such as a batch limit
    return pl.Trainer(
        max_steps=n_iterations,
        max_epochs=1,
        precision=execution.trainer_precision,
        gradient_clip_val=clipping,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        # A plain 1 would select the first GPU, even if this worker uses another one.
        devices=1
        if device.type == "cpu"
        else [torch.cuda.current_device() if device.index is None else device.index],
        # One process adapts one image, even if SLURM, torchrun or MPI launched it. Without this
        # plugin Lightning would detect the launcher and join its other processes.
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=callbacks,
    )
