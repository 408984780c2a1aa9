"""What every test runs under: one thread, fixed seeds, no network, no account; and what only some
machines have.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

# Before torch and the hubs are imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true"
)
os.environ.pop("WANDB_API_KEY", None)

import numpy as np
import pytest
import torch
from hypothesis import settings

from adir.data.embedded import TEST_FIELDS, Field, corpus_fields, cut
from adir.images import from_uint8, write_png

# The same examples each time, and no folder of earlier ones.
settings.register_profile("adir", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("adir")

REPOSITORY = Path(__file__).resolve().parent.parent

# Bit-equal results hold for one thread count; and the networks of the tests are too small to gain
# from a second one.
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same numbers for each test, whichever run before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True, scope="session")
def each_job_is_composed_once() -> Iterator[None]:
    """Hydra composes all jobs of a grid before the first is launched, to see that they can be, and
    then again to launch
    them: a tenth of a second each. `adir run` looks for itself; in the processes that tests start,
        Hydra does too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "hydra.plugins.sweeper.Sweeper.validate_batch_is_legal", lambda sweeper, jobs: None
        )
        yield


REMEMBERED = {
    "adir.harness.running.pipeline": "tell_once",
    "adir.weights.registry": "_failed_fetches",
}
"""What a process says, tries or times once."""


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    """No test hears less because another has heard it, in whatever order they run."""
    yield
    for module, name in REMEMBERED.items():
        if module in sys.modules:
            remembered = getattr(sys.modules[module], name)
            (remembered.clear if isinstance(remembered, dict | set) else remembered.cache_clear)()


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


@pytest.fixture(autouse=True, scope="session")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No weights of this machine's user are found, and none of a test's are left in their cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADIR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def authors_page() -> Path:
    """The images of the authors' project page (not ours to redistribute): sr4/, deblur/, sd_sr4/,
    editing/.
    """
    folder = REPOSITORY.parent / "shared" / "authors_page"
    if not folder.is_dir():
        pytest.skip(
            "needs the images of the authors' project page in ../shared/authors_page, beside "
            "the checkout"
        )
    return folder


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def adir(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """The `adir` command, called in this process: importing torch in a new one costs seconds."""
    from adir.cli import main

    def call(*arguments: object) -> Finished:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return Finished(status, *capfd.readouterr())

    return call


def small_images(folder: Path, fields: list[Field]) -> Path:
    """Embedded photographs of 128x128, averaged to 32x32, as PNG files 0.png, 1.png, ... in
    `folder`.
    """
    for number, field in enumerate(fields):
        x = from_uint8(cut(field))
        write_png(folder / f"{number}.png", torch.nn.functional.avg_pool2d(x, 4))
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test set: three photographs of 32x32."""
    return small_images(tmp_path_factory.mktemp("photographs"), list(TEST_FIELDS[:6:2]))


@pytest.fixture(scope="session")
def six_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test set: six photographs of 32x32."""
    return small_images(tmp_path_factory.mktemp("photographs"), list(TEST_FIELDS[::2]))


@pytest.fixture(scope="session")
def neighbourhood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus: six other photographs of 32x32."""
    return small_images(tmp_path_factory.mktemp("neighbourhood"), list(corpus_fields()[::50][:6]))


@pytest.fixture(scope="session")
def tiny(photographs: Path, neighbourhood: Path) -> list[str]:
    """Overrides under which `adir run` does an image in 0.1 s, or in 0.5 s with adaptation;
    results= is still to be said.
    """
    data = ["data=folder", f"data.path={photographs}"]
    corpus = ["retrieval=folder", f"retrieval.corpus.path={neighbourhood}", "k=2"]
    steps = [
        "sampler.n_steps=2",
        "adaptation.fine_tuning.n_iterations=1",
        "adaptation.fine_tuning.batch_size=1",
    ]
    steps.append("adaptation/fine_tuning=fixed")  # y of 8x8 pixels is too small to hold a part out
    return [*data, *corpus, *steps, "scoring.metrics=[psnr]"]


@pytest.fixture(scope="session")
def made_stable_diffusion() -> ModuleType:
    """tests/made_stable_diffusion.py."""
    import made_stable_diffusion  # takes seconds, and few tests need it

    return made_stable_diffusion


@pytest.fixture(scope="session")
def made_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny architecture that open_clip knows by this name from now on, with CLIP's own tokenizer."""
    import open_clip

    folder, name = tmp_path_factory.mktemp("architectures"), "made-clip"
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / f"{name}.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(folder)
    return name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests begin, so that no worker ends with one while the others have nothing left; those
    marked `gpu` are skipped where there is none.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
