"""`adir doctor`: print what is installed, what is missing, and how to install it."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "hydra-joblib-launcher",
    "diffusers",
    "peft",
    "deepinv",
    "pyiqa",
    "pandas",
    "pyarrow",
    "wandb",
    "open_clip_torch",
    "scikit-image",
    "safetensors",
    "rich",
)


def main() -> int:
    """Print which packages, GPUs, embedded parts and metrics are available.

    The embedded parts are the networks and images that the adir package contains. Returns 0, or 1
    if a package or an embedded part is missing.
    """
    missing = 0
    print(
        f"adir {version('adir')}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}"
    )
    for name in PACKAGES:
        try:
            print(f"  ok       {name} {version(name)}")
        except PackageNotFoundError:
            missing += 1
            print(f"  MISSING  {name}: pip install {name}")

    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            print(
                f"  ok       GPU {index}: {torch.cuda.get_device_name(index)}; use it with "
                f"backbone.device=cuda:{index}"
            )
    else:
        print("  none     GPU: all networks run on the CPU, where the paper's backbones are slow")
    print(f"  ok       {torch.get_num_threads()} CPU threads")

    from adir.errors import InputError
    from adir.harness.cells.cell import build
    from adir.harness.cells.compose import compose

    cfg = compose(["scoring=default"])
    networks = {"prior": cfg.backbone, "encoder": cfg.retrieval.encoders.knn}
    images = {"test images": cfg.data, "corpus": cfg.retrieval.corpus}
    for what, node in (networks | images).items():
        try:
            found = build(node, what)
            if what == "prior":
                found.network  # noqa: B018  loaded at first access
            told = found.weights_sha256[:12] if what in networks else f"{len(found)} images"
            print(f"  ok       embedded {what} ({told})")
        except InputError as error:
            missing += 1
            print(f"  MISSING  embedded {what}: {error}")

    scoring = build(cfg.scoring, "scoring")
    to_fetch = scoring.weights_to_fetch
    for metric in scoring.metrics:
        # A metric without its files is not asked for a reason, because that would download them.
        why = "; ".join(file.missing() or "" for file in to_fetch.get(metric.name, []))
        why = why or metric.unavailable()
        print(f"  {'none' if why else 'ok':8} metric {metric.name}{f': {why}' if why else ''}")
    sys.stdout.flush()  # so that a full disk is reported
    return 1 if missing else 0
