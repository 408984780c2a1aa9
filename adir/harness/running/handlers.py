"""Lightning callback that keeps adir's signal handlers in place during a fit."""

import signal
import threading

import pytorch_lightning as pl


class HandlersStay(pl.Callback):
    """Callback that keeps the signal handlers which were set when it was created.

    Lightning would otherwise handle SIGTERM itself and end the fit midway.
    """

    def __init__(self) -> None:
        self._handlers = {
            number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the saved signal handlers again, right after Lightning has installed its own."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                # None: the handler was not installed from Python, so Python cannot restore it.
                if handler is not None:
                    signal.signal(number, handler)
