"""`adir index build`: embed the images of a corpus, shard by shard, with one or more workers.

A shard is a part of the corpus, whose embeddings are stored in one file.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adir.commands.index_search import remember_encoder
from adir.data.sources.base import Source
from adir.errors import InputError, count_of
from adir.harness.cells.cell import build
from adir.harness.cells.compose import launch
from adir.harness.running.claims import Claims
from adir.harness.running.grid import in_parallel_worker, say
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.builder import (
    ShardStatistics,
    build_shard,
    extend_plan,
    finish,
    missing_shards,
    read_facts,
    require_empty_or_index,
    require_same_index,
    shard_path,
)

POLL = 0.5
"""The seconds between two checks whether another worker has released a claim."""


def main(overrides: list[str], multirun: bool) -> int:
    """Build the missing shards of an index, print a summary, and return 0.

    Args:
        overrides: KEY=VALUE settings; with `multirun`, worker=0,1 starts two workers.
        multirun: whether -m was given.

    Raises:
        InputError: if a setting, the corpus or the encoder cannot be used.
    """
    results: list[tuple[Path, list[ShardStatistics]]] = launch(
        build_job, overrides, multirun, config_name="index"
    )
    folder = results[0][0]
    shards = [one for _, done in results for one in done]
    images, encoding, waiting = (
        sum(getattr(one, what) for one in shards) for what in ("images", "encoding", "waiting")
    )
    manifest = read_facts(folder / "manifest.json")
    busy = f", encoder busy {encoding / (encoding + waiting):.0%} of the time" if images else ""
    say(f"{folder}: {count_of(images, 'new image')} embedded{busy}")
    say(described(manifest))
    if manifest["corpus"]["rejects"]:
        say(
            f"  {count_of(manifest['corpus']['rejects'], 'image')} could not be used; "
            f"{folder / 'rejects.json'} gives the reasons"
        )
    return 0


def described(manifest: Mapping[str, Any]) -> str:
    """Return two lines that describe an index: its corpus and its encoder.

    manifest: content of the index's manifest.json.
    """
    corpus, encoder, source = manifest["corpus"], manifest["encoder"], manifest["source"]
    return (
        f"  corpus {source['name']} ({source['kind']}): {count_of(corpus['images'], 'image')} "
        f"(SHA-256 {corpus['sha256'][:10]}) in {count_of(len(manifest['shards']), 'shard')}\n"
        f"  encoder {encoder['name']} (SHA-256 {encoder['weights_sha256'][:10]}), "
        f"{encoder['metric']}, "
        f"{manifest['dimensions']} dimensions, float16"
    )


def build_job(cfg: DictConfig) -> tuple[Path, list[ShardStatistics]]:
    """Run one worker, and return (folder of the index, shards that this worker embedded).

    The worker stops when no shard is missing. It takes over the shards of workers that die.

    Raises InputError if a setting, the corpus or the encoder cannot be used.
    """
    try:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} is missing: set {error.full_key}=...") from error
    if cfg.loaders is None:
        cfg.loaders = min(8, os.cpu_count() or 1)
    for key in ("shard_size", "batch_size", "loaders", "threads"):
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], int) or cfg[key] < 1:
            raise InputError(f"{key}={cfg[key]} must be a whole number of at least 1")
    if (
        isinstance(cfg.least_side, bool)
        or not isinstance(cfg.least_side, int)
        or cfg.least_side < 0
    ):
        raise InputError(
            f"least_side={cfg.least_side} must be a whole number of pixels; 0 accepts images of "
            "any size"
        )
    # Plan the shards, embed the missing ones, and write the manifest.
    torch.set_num_threads(cfg.threads)
    folder = Path(str(cfg.out))
    source: Source = build(cfg.corpus, "corpus")
    encoder: Encoder = build(cfg.encoder, "encoder")
    require_empty_or_index(folder)
    claims = Claims(folder / "claims")
    with wait_for_claim(claims, "plan"):
        require_same_index(folder, source, encoder, cfg.least_side)
        remember_encoder(folder, cfg.encoder)
        extend_plan(folder, source, cfg.shard_size)
    done = embed_missing(folder, source, encoder, claims, cfg)
    with wait_for_claim(claims, "manifest"):
        finish(folder)
    claims.clear_dead()  # left by workers that were killed after a shard, before its release
    if not claims.any_claims():  # left by workers that were killed while they wrote a shard
        for part in folder.glob("**/.*.part"):
            part.unlink(missing_ok=True)
    return folder, done


@contextmanager
def wait_for_claim(claims: Claims, name: str) -> Iterator[None]:
    """Hold a claim within the context, after waiting for any living worker that holds it.

    A claim is a lock file. The claim of a dead worker is taken over.
    """
    while not claims.take(name):
        time.sleep(POLL)
    try:
        yield
    finally:
        claims.release(name)


def embed_missing(
    folder: Path, source: Source, encoder: Encoder, claims: Claims, cfg: DictConfig
) -> list[ShardStatistics]:
    """Embed shards until none is missing, and return those that this worker embedded.

    One line is printed per shard. On a terminal, a progress bar is shown too.

    Args:
        folder: folder of the index.
        source: images of the corpus.
        encoder: encoder of the index.
        claims: lock files that divide the shards among the workers.
        cfg: configuration of `adir index build`.
    """
    done: list[ShardStatistics] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not sys.stderr.isatty() or in_parallel_worker()) as bar:
        n_missing = len(missing_shards(folder))
        task = bar.add_task("shards", total=n_missing)
        while missing := missing_shards(folder):
            did_one = False
            for number in missing:
                with claims.claimed(f"{number:06d}") as mine:
                    # The previous holder of the claim may have finished the shard meanwhile.
                    if not mine or shard_path(folder, number).exists():
                        continue

                    def show(now: ShardStatistics, number: int = number) -> None:
                        """Show the progress of the current shard in the progress bar."""
                        bar.update(
                            task, description=f"shard {number}: {now.images} images; shards done"
                        )

                    started = time.perf_counter()
                    one = build_shard(
                        folder,
                        number,
                        source,
                        encoder,
                        cfg.batch_size,
                        cfg.loaders,
                        show,
                        cfg.least_side,
                    )
                    done.append(one)
                    did_one = True
                    left = len(missing_shards(folder))
                    bar.update(task, completed=n_missing - left)
                    rejects = f" ({count_of(one.rejects, 'reject')})" if one.rejects else ""
                    rate = one.images / (time.perf_counter() - started)
                    say(
                        f"shard {number}: {count_of(one.images, 'image')}{rejects}, "
                        f"{rate:.1f} images/s; {count_of(left, 'shard')} left"
                    )
            if not did_one:
                time.sleep(POLL)
    return done
