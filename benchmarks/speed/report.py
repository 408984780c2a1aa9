"""Measure the seconds of `adir report` and `adir leaderboard` on many synthetic records.

    OMP_NUM_THREADS=1 python benchmarks/speed/report.py [--records 10000] [--size 256] [--out results/speed/report.md]

The scores mean nothing. The rows are those of a typical study: two tasks, eight rows (none, self,
knn and random with three K), five seeds, up to 20 neighbours, 400 losses per adapter. All image
files are hard links to 16 files, so as much is read as in a real folder without filling the disk.
"""

import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from safetensors.numpy import save

from adir.data.embedded import TEST_FIELDS, cut
from adir.harness.records.layout import Layout
from adir.harness.records.record import Record
from adir.images import png_bytes
from benchmarks.common import REPOSITORY, adir, command, made_on, parser_of, publish, seconds_of

sys.path.append(str(REPOSITORY / "tests"))
from made_records import changed, ledger_of, made_record, put, sha256_of

ROWS = [
    ("none", None),
    ("self", None),
    *((mode, k) for mode in ("knn", "random") for k in (1, 5, 20)),
]
SEEDS = range(5)
TASKS = ("sr4", "deblur")
MEANS = {"psnr": 24.0, "ssim": 0.7, "lpips-alex": 0.3, "musiq-koniq": 55.0, "piqe": 30.0}
WANTED = {"report": 20, "leaderboard": 3}
"""Goals in seconds for 10,000 records."""


def link(source: Path, path: Path) -> None:
    """Create a hard link to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, path)


def make_results(folder: Path, n_records: int, size: int) -> int:
    """Fill a results folder with at least n_records records; return their number."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(16):
        field = Image.fromarray(cut(TEST_FIELDS[number % len(TEST_FIELDS)])).resize((size, size))
        # The noise makes the image as hard to compress as a restored one.
        noisy = np.asarray(field, np.float64) + rng.normal(0, 6, (size, size, 3))
        files.append(folder / "made" / f"{number}.png")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_bytes(png_bytes(noisy.clip(0, 255).astype(np.uint8)))
    facts = {
        "losses": rng.gamma(2.0, 0.01, 400).tolist(),
        "layers": [f"block.{i}.weight" for i in range(200)],
    }
    adapter = folder / "made" / "adapter"
    adapter.write_bytes(save({"w": np.zeros(1000, np.float32)}, {"facts": json.dumps(facts)}))
    corpus = [(f"corpus/{i:05d}.jpg", sha256_of(f"corpus {i}")) for i in range(5000)]
    for number, (_, digest) in enumerate(corpus):
        link(files[number % 16], folder / "images" / f"{digest}-thumbnail.png")
    cells = list(itertools.product(TASKS, ROWS, SEEDS))
    n_images = -(-n_records // len(cells))
    for number in range(n_images):
        records = [
            made_results_record(f"image-{number:04d}.png", *cell, rng, corpus) for cell in cells
        ]
        link(files[number % 16], folder / "images" / f"{records[0].image.sha256}.png")
        for record in records:
            y, restored = folder / str(record.y_file), folder / str(record.restored)
            if not y.exists():
                link(files[(number + 1) % 16], y)
            link(files[(number + record.seed + 2) % 16], restored)
            if record.adapter is not None:
                link(adapter, Layout(folder).adapter(record.adapter.key))
        put(folder, records)
    return n_images * len(cells)


def made_results_record(
    image: str,
    task: str,
    row: tuple[str, int | None],
    seed: int,
    rng: np.random.Generator,
    corpus: list[tuple[str, str]],
) -> Record:
    """Return a record with K neighbours and the names of its files."""
    mode, k = row
    scores = {name: mean * float(rng.gamma(50.0, 0.02)) for name, mean in MEANS.items()}
    record = made_record(image, task=task, mode=mode, k=k, seed=seed, adapter="lora", scores=scores)
    near = rng.choice(len(corpus), k or 0, replace=False)
    distances = np.sort(rng.uniform(0.5, 1.2, k or 0))
    return changed(
        record,
        {
            "configuration": {"data": {"name": "made"}, "scoring": {"metrics": list(scores)}},
            "versions": {"adir": "0", "torch": "0"},
            "threads": 1,
            "y.file": f"measurements/{task}/{image}.png",
            "restored": ledger_of(Path(), record).image_path(image).as_posix(),
            "neighbours": [
                {"id": corpus[i][0], "distance": float(d), "image": corpus[i][1]}
                for i, d in zip(near, distances, strict=True)
            ],
            "seconds": {"sample": 30.0, "retrieve": 0.1},
        },
    )


def main() -> None:
    """Make the folder, time the two commands on it, and print or write the result."""
    parser = parser_of(__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256, help="side of every image in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        help="create the results here and keep them (default: a temporary folder)",
    )
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "results"
        if not folder.exists():
            made = make_results(folder, options.records, options.size)
            print(f"made {made:,} records of {options.size} pixels")
        n_records = sum(1 for _ in folder.glob("cells/*/*/*/records/*.json"))
        times = {
            word: [seconds_of(lambda word=word: adir(word, folder)) for _ in range(options.repeats)]
            for word in WANTED
        }
        megabytes = (folder / "report.html").stat().st_size / 1e6
    rows = [
        f"| `adir {word}` | {min(found):.1f} | {median(found):.1f} | {max(found):.1f} "
        f"| {WANTED[word]} |\n"
        for word, found in times.items()
    ]
    text = (
        f"# `adir report` over {n_records:,} records of {options.size} pixels\n\n"
        f"    OMP_NUM_THREADS=1 {command(__file__)}\n\n"
        "| seconds, wall clock | fastest | median | slowest | wanted, at most "
        "|\n|---|---|---|---|---|\n"
        f"{''.join(rows)}\n"
        f"{options.repeats} runs of each, from the start of Python; files in the page cache; "
        f"the page has {megabytes:.1f} MB. {made_on()}.\n"
    )
    publish(text, options.out)


if __name__ == "__main__":
    main()
