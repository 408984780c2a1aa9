"""Tune the settings of `fine_tuning=safe`: held-out and oracle loss on tuning images, no sampling.

    python benchmarks/quality/fine_tuning.py --parquet caltech101_128.parquet --out runs/fine_tuning
    python benchmarks/quality/fine_tuning.py --out runs/fine_tuning \\
        --table results/embedded/fine_tuning.md

No published table uses the tuning images. Some are crops of photographs in the corpus of
data=domains, 128x128. The others are test images of unseen categories that data=unseen leaves out,
64x64. y is their degradation by sr4. Neighbours are found by encoder=imagenet, without crops that
overlap the image. A stopped run resumes when it is started again.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from adir.adaptation.adapters import Full
from adir.adaptation.crops import NoisyCrops
from adir.adaptation.denoising_module import AveragedWeights, DenoisingModule, quiet_trainer
from adir.adaptation.held_out import HeldOutCrops, relative_loss, split
from adir.adaptation.safe import SafeFineTuning
from adir.backbones.guided_diffusion import GuidedDiffusion
from adir.data.base import Corpus
from adir.data.corpus import parquet_corpus, unseen_corpus
from adir.data.domains import DomainCorpus
from adir.data.fields import field_named, overlap
from adir.data.selection import Selection
from adir.diffusion.posterior import diffuse, epsilon_loss
from adir.harness.running.pipeline import ORACLE_TIMESTEPS
from adir.images import generator
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.retrieval.index.memory import Index
from adir.retrieval.leakage import copies
from adir.retrieval.query import query_image
from adir.tasks.operators import SuperResolution
from adir.tasks.restoration import RestorationTask

AVERAGES, ALPHAS = (0.0, 0.9), (0.5,)
N_IMAGES = {"domains": 3, "unseen": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--parquet", type=Path, help="Caltech-101, for the images of unseen categories"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--suites", nargs="+", default=["domains", "unseen"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.table is not None:
        options.table.write_text(table(options.out))
        return
    torch.set_num_threads(1)
    backbone, encoder = GuidedDiffusion(), ImagenetEncoder()
    images_of = {suite: tuning_images(suite, options.parquet) for suite in options.suites}
    for settings in configurations():
        for suite in options.suites:
            for image_id, x, corpus, hidden in images_of[suite]:
                path = options.out / f"{suite}-{image_id}-{name_of(settings)}.json".replace(
                    "/", "_"
                )
                if not path.exists():
                    started = time.process_time()
                    images = chosen_images(
                        settings, image_id, x, corpus, hidden, encoder, options.out
                    )
                    own = (
                        own_images(options.parquet, x.shape[-1])
                        if settings["mode"] == "distilled"
                        else []
                    )
                    rows = study(backbone, x, images, own, settings, image_id)
                    facts = {
                        "suite": suite,
                        "image": image_id,
                        **settings,
                        "seconds": time.process_time() - started,
                    }
                    path.write_text(json.dumps([facts | row for row in rows]))
                    print(path.name, f"{facts['seconds']:.0f} s", flush=True)


def configurations() -> list[dict]:
    """Return the settings to run, the most important first.

    `crop` is for 128-pixel images and is halved for 64-pixel images. The mode `distilled` trains
    on the neighbours and on as many images of the prior's training set. The latter preserve the
    untuned predictions.
    """
    base = {"mode": "knn", "k": 20, "learning_rate": 5e-5, "crop": 64, "n_iterations": 80}
    changes = [
        {},
        {"learning_rate": 1e-4},
        {"mode": "mixed"},
        {"mode": "distilled"},
        {"crop": 96},
        {"k": 5},
        {"mode": "random"},
        {"n_iterations": 160},
        {"crop": 48},
        {"learning_rate": 2e-5},
        {"k": 1},
        {"learning_rate": 2e-4},
    ]
    return [base | change for change in changes]


def name_of(settings: dict) -> str:
    """Return the file name of a run with these settings."""
    return "-".join(str(value) for value in settings.values())


def tuning_images(suite: str, parquet: Path | None) -> list[tuple[str, Tensor, Corpus, set[str]]]:
    """Return (id, x, corpus, ids that must not be neighbours) of each tuning image."""
    if suite == "domains":
        corpus: Corpus = DomainCorpus()
        by_photograph: dict[str, list[str]] = {}
        for name in corpus.ids:
            by_photograph.setdefault(name.split("-s")[0], []).append(name)
        photographs = random.Random(0).sample(sorted(by_photograph), N_IMAGES[suite])
        chosen = [
            random.Random(photograph).choice(by_photograph[photograph])
            for photograph in photographs
        ]
        fields = {name: field_named(name) for name in corpus.ids}
        return [
            (
                name,
                corpus.image(name),
                corpus,
                {other for other in corpus.ids if overlap(fields[name], fields[other])},
            )
            for name in chosen
        ]
    corpus = Selection(unseen_corpus("corpus"), size=64)
    tests = left_out(parquet, size=64)
    return [
        (name, tests.image(name), corpus, set(copies(tests.image(name), corpus)))
        for name in random.Random(0).sample(tests.ids, N_IMAGES[suite])
    ]


def left_out(parquet: Path | None, size: int | None) -> Selection:
    """Return the test images of caltech101_128.parquet that data=unseen leaves out.

    size: in pixels; None keeps the images' own size of 128.
    """
    return Selection(parquet_corpus(parquet, column="split", value="test"), size=size, skip=3)


def chosen_images(
    settings: dict,
    image_id: str,
    x: Tensor,
    corpus: Corpus,
    hidden: set[str],
    encoder: ImagenetEncoder,
    out: Path,
) -> list[Tensor]:
    """Return the K images to tune on: the nearest, random ones, or both kinds in turn."""
    task, k = RestorationTask("sr4", 1, SuperResolution(4), 0.0, 100.0), settings["k"]
    y = task.degrade(x, generator(0, image_id, "y"))
    query = task.query(encoder, query_image(task, y, "as_is", encoder.input_size))
    ids, _ = Index.build(corpus, encoder, out).search(query, k, exclude=[hidden])
    left = [name for name in corpus.ids if name not in hidden]
    drawn = [
        left[row]
        for row in torch.randperm(len(left), generator=generator(0, image_id, "random"))[
            :k
        ].tolist()
    ]
    mixed = [name for pair in zip(ids[0], drawn, strict=True) for name in pair][:k]
    return [
        corpus.image(name)
        for name in {"random": drawn, "mixed": mixed}.get(settings["mode"], ids[0])
    ]


def own_images(parquet: Path, size: int) -> list[Tensor]:
    """Return 64 images that the embedded prior was trained on."""
    train = Selection(parquet_corpus(str(parquet), column="split", value="train"), size=size)
    return [train.image(name) for name in random.Random(0).sample(train.ids, 64)]


class Distilled(IterableDataset):
    """Stream that alternates examples of a stream with examples that distil the untuned network.

    A distilling example is (x0_hat, t, eps_hat) with the untuned prediction eps_hat of an x_t.
    Diffusing x0_hat with eps_hat gives x_t again, so the usual loss penalises any change of the
    prediction.
    """

    def __init__(self, examples: NoisyCrops, own: NoisyCrops, backbone: GuidedDiffusion, n: int):
        """Predict n examples of `own` with the network in its present state."""
        self._examples, self._held = examples, []
        alpha_bar = backbone.schedule.alpha_bar
        with torch.no_grad():
            for z, t, eps in itertools.islice(own, n):
                x_t = diffuse(z, eps, alpha_bar[t]).float()
                eps_hat = backbone.predict(x_t[None], t[None]).eps[0]
                x0_hat = (x_t - (1 - alpha_bar[t]).sqrt() * eps_hat) / alpha_bar[t].sqrt()
                self._held.append((x0_hat.float(), t, eps_hat))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for pair in zip(self._examples, itertools.cycle(self._held)):
            yield from pair


def study(
    backbone: GuidedDiffusion,
    x: Tensor,
    images: list[Tensor],
    own: list[Tensor],
    settings: dict,
    image_id: str,
) -> list[dict]:
    """Tune once, and measure averaged and scaled weights at iterations 20, 40, 80 and 160.

    Args:
        backbone: the denoiser to tune.
        x: (3, H, W) ground truth.
        images: images to tune on; some are held out.
        own: images that the backbone was trained on, for distillation; empty: no distillation.
        settings: one of `configurations`.
        image_id: seeds the generator.

    Returns:
        One row per iteration, average and alpha.
    """
    crop, noise = settings["crop"] * x.shape[-1] // 128, generator(0, image_id, "adaptation")
    tuning = SafeFineTuning(settings["n_iterations"], 6, settings["learning_rate"], crop)
    parts = split(images, crop, backbone.stride, noise)
    examples = NoisyCrops(parts.training, crop, backbone.stride, 1000, True, noise)
    stream, n_batch = examples, tuning.batch_size
    if own:
        stream = Distilled(
            examples, NoisyCrops(own, crop, backbone.stride, 1000, True, noise), backbone, 240
        )
        n_batch = 2 * tuning.batch_size
    held_out = HeldOutCrops(backbone, parts.held_out, examples.size, 2, noise, None)
    untuned, oracle = held_out.losses(), oracle_errors(backbone, x)
    attached, rows = Full().attach(backbone.network), []
    try:

        def judge(average: float, iteration: int) -> None:
            trained = attached.tensors()
            for alpha in (*ALPHAS, 1.0) if average == 0.9 else (1.0,):
                attached.load(attached.scaled(trained, alpha))
                errors = oracle_errors(backbone, x)
                change = {f"t{t}": 100 * (errors[t] / oracle[t] - 1) for t in errors}
                losses = held_out.losses()
                rows.append(
                    {"iteration": iteration, "average": average, "alpha": alpha}
                    | {
                        "held_out": 100 * (relative_loss(losses, untuned) - 1),
                        "oracle": sum(change.values()) / len(change),
                    }
                    | change
                    | {"strata": (100 * (losses.mean(1) / untuned.mean(1) - 1)).tolist()}
                )
            attached.load(trained)

        watches = [
            AveragedWeights(
                attached.parameters(), average, (20, 40, 80, 160), lambda i, a=average: judge(a, i)
            )
            for average in AVERAGES
        ]
        module = DenoisingModule(
            backbone.network, backbone.denoising_loss, attached.parameters(), tuning.optimizer
        )
        trainer = quiet_trainer(
            tuning.n_iterations, backbone.execution, watches, False, tuning.clipping
        )
        trainer.fit(module, DataLoader(stream, batch_size=n_batch))
    finally:
        attached.remove()
    return rows


@torch.no_grad()
def oracle_errors(backbone: GuidedDiffusion, x: Tensor) -> dict[int, float]:
    """Return {t: error of eps on the ground truth}, with one fixed noise per t."""
    errors = {}
    for t in ORACLE_TIMESTEPS:
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))[None]
        x_t = diffuse(x[None], eps, backbone.schedule.alpha_bar[t]).float()
        errors[t] = epsilon_loss(eps, backbone.predict(x_t, torch.tensor([t])).eps).item()
    return errors


def table(out: Path) -> str:
    """Return a Markdown table with one row per setting and iteration; means over images.

    There is one column per kind of weights. Each entry has three changes in percent: that of the
    held-out loss, that of the error on the ground truth, and the latter with a gate. With the gate,
    the adapter is used only at timesteps in a stratum whose held-out loss fell.
    """
    rows = pd.DataFrame(
        [row for path in sorted(out.glob("*.json")) for row in json.loads(path.read_text())]
    )
    rows = rows[
        (rows.iteration >= 20) & rows.average.isin((0.0, 0.9)) & rows.alpha.isin((0.5, 1.0))
    ]
    rows["gated"] = rows.apply(gated, axis=1)
    rows["weights"] = rows.apply(lambda row: weights_name(row.average, row.alpha), axis=1)
    settings = ["suite", "mode", "k", "learning_rate", "crop", "n_iterations", "iteration"]
    kinds = [weights_name(0.0, 1.0), weights_name(0.9, 1.0), weights_name(0.9, 0.5)]
    lines = [
        f"| {' | '.join([*settings, 'images', *kinds])} |",
        "|---" * (len(settings) + 1 + len(kinds)) + "|",
    ]
    for key, group in rows.groupby(settings):
        cells = []
        for kind in kinds:
            one = group[group.weights == kind]
            values = (one.held_out.mean(), one.oracle.mean(), one.gated.mean())
            cells.append(", ".join(f"{value:+.1f}" for value in values) if len(one) else "")
        named = [f"{value:g}" if isinstance(value, float) else str(value) for value in key]
        lines.append(f"| {' | '.join([*named, str(group.image.nunique()), *cells])} |")
    return "\n".join(lines) + "\n"


def weights_name(average: float, alpha: float) -> str:
    """Return the column title of this kind of weights."""
    return ("averaged" if average else "last iterate") + (
        "" if alpha == 1 else f", alpha {alpha:g}"
    )


def gated(row: pd.Series) -> float:
    """Return the gated change of the error on the ground truth, in percent.

    The adapter is used only at timesteps at which the held-out loss fell.
    """
    used = [
        row[f"t{t}"] if row.strata[t * len(row.strata) // 1000] < 0 else 0.0
        for t in ORACLE_TIMESTEPS
    ]
    return sum(used) / len(used)


if __name__ == "__main__":
    main()
