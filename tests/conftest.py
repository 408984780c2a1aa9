"""What every test runs under: one thread, fixed seeds, no network, no account; and what only some machines have."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Before torch and the hubs are imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")
os.environ.pop("WANDB_API_KEY", None)

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# Bit-equal results hold for one thread count; and the networks of the tests are too small to gain from a second one.
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same numbers for each test, whichever run before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A connection to another machine fails at once, and says so; this machine's own sockets work."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None  # AF_UNIX addresses are paths
        if host not in (None, "127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests use no network; this one asked for {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def authors_page() -> Path:
    """The pictures of the authors' project page (not ours to redistribute): sr4/, deblur/, sd_sr4/, editing/."""
    folder = REPOSITORY.parent / "shared" / "authors_page"
    if not folder.is_dir():
        pytest.skip("needs the pictures of the authors' project page in ../shared/authors_page, beside the checkout")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
