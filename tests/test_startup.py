"""Which packages each command imports.

One more costs every user its seconds: results/speed/startup.md.
"""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
from adir.cli import main
try:
    main()
finally:
    print(sorted(name.partition(".")[0] for name, module in sys.modules.items() if module is not None))
"""
LARGE = {
    *(
        "torch",
        "torchvision",
        "diffusers",
        "transformers",
        "peft",
        "bitsandbytes",
        "accelerate",
        "deepinv",
        "pyiqa",
        "timm",
    ),
    *(
        "open_clip",
        "pytorch_lightning",
        "torchmetrics",
        "scipy",
        "skimage",
        "cv2",
        "pandas",
        "matplotlib",
        "pyarrow",
    ),
    *(
        "datasets",
        "webdataset",
        "faiss",
        "wandb",
        "tensorboard",
        "hydra",
        "numpy",
        "pydantic",
        "rich",
        "huggingface_hub",
    ),
}
CELL = {"torch", "numpy", "hydra", "pydantic", "rich", "huggingface_hub"}
"""What it takes to build a cell and write its record."""
RUN = "run task=sr4 sampler=bicubic data=folder data.path=. results=runs scoring.metrics"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, allowed",
    [
        ("--version", set()),
        ("list", set()),
        ("leaderboard runs", {"numpy", "scipy", "pydantic", "rich", "pandas", "pyarrow"}),
        ("run bogus=1", {"hydra"}),
        ("run task=nosuch", {"hydra"}),
        ("run existing=nosuch", {"hydra"}),
        ("plan -m bogus=1 seed=0,1", {"hydra"}),
        ("restore y.png task=sr4 sampler=bicubic", CELL),
        (f"{RUN}=[psnr]", {*CELL, "pyarrow", "scipy"}),
        (
            f"{RUN}=[ssim]",
            {*CELL, "pyarrow", "scipy", "pyiqa", "torchvision", "timm", "cv2", "pandas"},
        ),
        (
            "restore y.png task=sr4 sampler=adir sampler.n_steps=1",
            {*CELL, "diffusers", "transformers", "peft", "accelerate", "scipy", "torchvision"},
        ),
    ],
)
def test_a_command_imports_no_large_package_beyond_those_it_needs(tmp_path, words, allowed):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "y.png")
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    imported = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert (imported & LARGE) - allowed == set()
