"""Signal handlers that outlast a fit."""

import signal
import threading

import pytorch_lightning as pl


class HandlersStay(pl.Callback):
    """Keeps the signal handlers of this moment during a fit:

    Lightning would take SIGTERM, and end the fit midway.
    """

    def __init__(self) -> None:
        self._handlers = {
            number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called right after Lightning has put in its own."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                if handler is not None:  # one that no Python code put in, and none can put back
                    signal.signal(number, handler)
