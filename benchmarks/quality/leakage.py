"""Test the leakage rule: the share of copies of a test image found, and innocent neighbours lost.

    python benchmarks/quality/leakage.py --parquet FILE

The script takes four minutes on one core. Measurements are saved in --notes. A stopped run resumes
from there with the same command, if the rule and the seed are the same.
"""

import functools
import io
import json
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adir.data.base import Corpus
from adir.data.corpus import parquet_corpus
from adir.data.embedded import EmbeddedCorpus, corpus_fields, test_fields
from adir.data.fields import overlap
from adir.data.fingerprints import fingerprint
from adir.files import hash_of, sha256_of_bytes
from adir.harness.running.provenance import commit
from adir.images import from_uint8, to_uint8
from adir.retrieval.encoders.imagenet import ImagenetEncoder
from adir.retrieval.index.memory import Index
from adir.retrieval.leakage import COPY_RULE, copies
from benchmarks.common import REPOSITORY, add_parquet, command, parser_of, publish

K = 20
TEXTURES = ("brick", "grass", "gravel", "hubble_deep_field", "coins", "retina")
# Images that Caltech-101 holds twice, judged by eye. Leopards are 100 images and their mirror images.
DOUBLES = {
    "kangaroo/image_0035.jpg": "kangaroo/image_0050.jpg",
    "lotus/image_0033.jpg": "lotus/image_0023.jpg",
}
Pixels = np.ndarray


def jpeg(pixels: Pixels, quality: int = 50) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="jpeg", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def half(pixels: Pixels) -> Pixels:
    size = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def saturation(pixels: Pixels, share: float) -> Pixels:
    grey = np.array(Image.fromarray(pixels).convert("L"))[..., None].astype(float)
    return levels(grey + share * (pixels - grey))


def contrast(pixels: Pixels, factor: float) -> Pixels:
    return levels(pixels.mean() + factor * (pixels - pixels.mean()))


def gamma(pixels: Pixels, exponent: float) -> Pixels:
    return levels(255 * (pixels / 255) ** exponent)


def levels(values: np.ndarray) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def crop(pixels: Pixels, height: float, width: float, rng: np.random.Generator) -> Pixels:
    """Return a crop at a random place, with these shares of the image's height and width."""
    h, w = round(pixels.shape[0] * height), round(pixels.shape[1] * width)
    y, x = rng.integers(pixels.shape[0] - h + 1), rng.integers(pixels.shape[1] - w + 1)
    return pixels[y : y + h, x : x + w]


Copy = Callable[[Pixels, np.random.Generator], Pixels]
ROOT = 0.8**0.5
KINDS: dict[str, Copy] = {
    "itself": lambda p, rng: p,
    "grey": lambda p, rng: saturation(p, 0),
    "saturation 50 %": lambda p, rng: saturation(p, 0.5),
    "brightness +20 %": lambda p, rng: levels(p * 1.2),
    "brightness -20 %": lambda p, rng: levels(p * 0.8),
    "contrast +20 %": lambda p, rng: contrast(p, 1.2),
    "contrast -20 %": lambda p, rng: contrast(p, 0.8),
    "gamma 0.8": lambda p, rng: gamma(p, 0.8),
    "gamma 1.25": lambda p, rng: gamma(p, 1.25),
    "turned by 90°": lambda p, rng: np.rot90(p),
    "turned by 180°": lambda p, rng: np.rot90(p, 2),
    "turned by 270°": lambda p, rng: np.rot90(p, 3),
    "flipped left to right": lambda p, rng: p[:, ::-1],
    "flipped upside down": lambda p, rng: p[::-1],
    "crop, 80 % of each side": lambda p, rng: crop(p, 0.8, 0.8, rng),
    "crop, 80 % of the area": lambda p, rng: crop(p, ROOT, ROOT, rng),
    "crop, 80 % of the width": lambda p, rng: crop(p, 1, 0.8, rng),
    "crop, 80 % of the height": lambda p, rng: crop(p, 0.8, 1, rng),
    "crop, 90 % of each side": lambda p, rng: crop(p, 0.9, 0.9, rng),
    "JPEG of quality 50": lambda p, rng: jpeg(p),
    "half the size": lambda p, rng: half(p),
    "grey, JPEG": lambda p, rng: jpeg(saturation(p, 0)),
    "flipped, half the size": lambda p, rng: half(p[:, ::-1]),
    "flipped, grey": lambda p, rng: saturation(p[:, ::-1], 0),
    "turned by 90°, JPEG": lambda p, rng: jpeg(np.rot90(p)),
    "brightness +20 %, half the size": lambda p, rng: half(levels(p * 1.2)),
    "gamma 1.25, JPEG": lambda p, rng: jpeg(gamma(p, 1.25)),
    "crop of 80 % of each side, flipped": lambda p, rng: crop(p, 0.8, 0.8, rng)[:, ::-1],
    "crop of 80 % of each side, grey": lambda p, rng: saturation(crop(p, 0.8, 0.8, rng), 0),
    "crop of 80 % of each side, JPEG": lambda p, rng: jpeg(crop(p, 0.8, 0.8, rng)),
    "crop of 80 % of each side, half the size": lambda p, rng: half(crop(p, 0.8, 0.8, rng)),
}
REVERSED = "test image a crop, 80 % of each side, of the corpus image"
HEAD = """# Leakage: copies found and innocent neighbours lost

A corpus image that is a copy of a test image is left out of its neighbours by the rule in `adir/retrieval/leakage.py`.
Test images: the 12 embedded test fields, each copied {draws} times (crops at other places), each copy alone in the embedded
corpus ({fields_size} images); and {n} images of `{parquet}` ({n_test} of the split `test`,
the rest of the split `corpus`, drawn with seed {seed}), copied once, all copies of an image at once in the split `corpus`
({caltech_size} images), which can only lower what is found. All images are of 128x128 pixels.

{date}, commit {commit}, rule {rule}:

    {command}

## Copies found

| kind | test fields | Caltech-101 |
|---|---|---|
"""


class With(Corpus):
    """Corpus with added copies, which come first."""

    def __init__(self, corpus: Corpus, held: dict[str, Tensor]) -> None:
        self._corpus, self._held = corpus, held
        self.ids = [*held, *corpus.ids]
        self._own = np.stack([fingerprint(x) for x in held.values()])

    @property
    def fingerprints(self) -> Sequence[np.ndarray]:  # type: ignore[override]
        return [self._own, *self._corpus.fingerprints]

    def image(self, image_id: str) -> Tensor:
        return self._held[image_id] if image_id in self._held else self._corpus.image(image_id)


class Notes:
    """Measurements, saved one per line, so that a stopped run can resume."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known: dict[str, list[str]] = dict(json.loads(line) for line in lines)

    def get(self, key: str, measure: Callable[[], list[str]]) -> list[str]:
        if key not in self._known:
            self._known[key] = measure()
            with self._path.open("a") as file:
                file.write(json.dumps([key, self._known[key]]) + "\n")
        return self._known[key]


def recall(
    images: dict[str, Tensor], corpus: Corpus, draws: int, seed: int, notes: Notes, together: bool
) -> dict[str, float]:
    """Return the share of copies found, by kind.

    Args:
        images: the test images by id.
        corpus: the corpus to add copies to.
        draws: copies per image and kind.
        seed: seed of the copies.
        notes: saved measurements.
        together: add all copies of an image at once, which is faster.
    """
    found: dict[str, list[bool]] = {}
    for name, x in images.items():
        for draw in range(draws):
            known = notes.get(
                f"{name} {draw}",
                functools.partial(copies_found, name, x, corpus, [seed, draw], together),
            )
            for kind in [*KINDS, REVERSED]:
                found.setdefault(kind, []).append(kind in known)
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def copies_found(
    name: str, x: Tensor, corpus: Corpus, seeds: list[int], together: bool
) -> list[str]:
    """Return the kinds of copies of one image that are found."""
    rng = np.random.default_rng([*seeds, int(sha256_of_bytes(name.encode())[:8], 16)])
    made = {
        kind: from_uint8(np.ascontiguousarray(copy(to_uint8(x), rng)))
        for kind, copy in KINDS.items()
    }
    sets = [made] if together else [{kind: copy} for kind, copy in made.items()]
    found = {kind for held in sets for kind in copies(x, With(corpus, held)) if kind in KINDS}
    if "x" in copies(made["crop, 80 % of each side"], With(corpus, {"x": x})):
        found.add(REVERSED)
    return sorted(found)


class Lost:
    """Counts of innocent neighbours that the rule leaves out.

    Neighbours are the K nearest to the clean test image by the imagenet encoder, without known
    copies.
    """

    def __init__(self) -> None:
        self.chosen, self.lost, self.seconds, self.pairs = 0, 0, 0.0, list[str]()

    def add(self, x: Tensor, name: str, corpus: Corpus, index: Index, known: set[str]) -> None:
        """Count for one test image; `known` are the ids of its known copies."""
        encoder = ImagenetEncoder()
        nearest = index.search(encoder.image(x[None]), K, [known])[0][0]
        started = time.process_time()
        left_out = copies(x, corpus) - known
        self.seconds += time.process_time() - started
        self.chosen += K
        self.lost += len(left_out.intersection(nearest))
        self.pairs += [f"{name} – {other}" for other in sorted(left_out)]

    def row(self, what: str) -> str:
        more = f"; all pairs left out: {', '.join(self.pairs)}" if self.pairs else ""
        return (
            f"| {what} | {self.chosen} | {self.lost} ({100 * self.lost / self.chosen:.2f} "
            f"%){more} |"
        )


def main() -> None:
    parser = parser_of(__doc__, REPOSITORY / "results" / "quality" / "leakage.md")
    add_parquet(parser)
    parser.add_argument(
        "--n", type=int, default=200, help="images: first its split `test`, then `corpus`"
    )
    parser.add_argument("--draws", type=int, default=3, help="copies per test field and kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--notes", type=Path, default=Path("leakage-notes.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    notes = Notes(args.notes.with_stem(f"{args.notes.stem}-{hash_of([COPY_RULE, args.seed])[:10]}"))
    embedded = EmbeddedCorpus()
    test, caltech = (parquet_corpus(args.parquet, "split", part) for part in ("test", "corpus"))
    rng = np.random.default_rng(args.seed)
    drawn = [
        (part, name) for part in (test, caltech) for name in rng.permutation(part.ids).tolist()
    ][: args.n]
    fields, photographs = dict(test_fields()), {name: part.image(name) for part, name in drawn}

    lost = {name: Lost() for name in ("12 test fields", *TEXTURES, "Caltech-101")}
    index = Index.build(embedded, ImagenetEncoder())
    for name, x in fields.items():
        lost["12 test fields"].add(x, name, embedded, index, set())
    # Each field is used like a test image. Fields that overlap it are not innocent.
    for field in corpus_fields():
        if field.photograph in TEXTURES:
            ground = {other.id for other in corpus_fields() if overlap(field, other)}
            lost[field.photograph].add(embedded.image(field.id), field.id, embedded, index, ground)
    index = Index.build(caltech, ImagenetEncoder())
    for name, x in photographs.items():
        category = name.split("/")[0]
        known = {
            other
            for other in caltech.ids
            if category == "Leopards" and other.startswith("Leopards/")
        }
        twin = mirrored_leopard(name) if known else DOUBLES.get(name)
        lost["Caltech-101"].add(x, name, caltech, index, {name, twin} - {None})

    seconds = lost["Caltech-101"].seconds / len(photographs)
    of_fields = recall(fields, embedded, args.draws, args.seed, notes, together=False)
    of_photographs = recall(photographs, caltech, 1, args.seed, notes, together=True)
    text = HEAD.format(
        draws=args.draws, fields_size=len(embedded), n=len(photographs), n_test=min(len(test), len(photographs)),
        parquet=Path(args.parquet).name, seed=args.seed,
        caltech_size=len(caltech), date=date.today(), commit=commit(),
        rule=json.dumps(COPY_RULE), command=command(__file__, (args.parquet, args.notes, args.out)),
    )  # fmt: skip
    text += "".join(
        f"| {kind} | {of_fields[kind]:.3f} | {of_photographs[kind]:.3f} |\n" for kind in of_fields
    )
    doubles = ", ".join(f"{a} – {b}" for a, b in DOUBLES.items())
    text += f"""
## Innocent neighbours left out

Neighbours: the {K} nearest to the clean test image by the imagenet encoder. Not innocent are, in Caltech-101, the mirror image
of a Leopard and the images that it holds twice ({doubles}). For the textures, each corpus field was used as a
test image; the fields that overlap it are not innocent.

| test images | neighbours | left out |
|---|---|---|
"""
    text += "\n".join(some.row(what) for what, some in lost.items())
    text += (
        f"\n\nThe rule takes {1000 * seconds:.0f} ms of processor time per test image with "
        f"{len(caltech)} images.\n"
    )
    publish(text, args.out)


def mirrored_leopard(name: str) -> str:
    """Return the mirror image of a Leopard of Caltech-101; their numbers are 100 apart."""
    number = int(name.removesuffix(".jpg")[-4:])
    return f"Leopards/image_{number + 100 if number <= 100 else number - 100:04d}.jpg"


if __name__ == "__main__":
    main()
