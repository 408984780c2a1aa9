"""`adir index build`: workers that claim shards."""

import os
import sys
import time
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adir.commands.index_search import remember_encoder
from adir.data.sources.base import Source
from adir.errors import InputError
from adir.files import set_aside
from adir.harness.cells.cell import build
from adir.harness.cells.compose import launch
from adir.harness.running.claims import Claims
from adir.harness.running.grid import beside_others, say
from adir.retrieval.encoders.base import Encoder
from adir.retrieval.index.builder import (
    Embedded,
    build_shard,
    extend_plan,
    finish,
    missing_shards,
    planned,
    read_facts,
    require_room,
    require_same_index,
    shard_path,
)
from adir.retrieval.index.shards import Shard

POLL = 0.5
"""Seconds between looks at work that other workers hold."""


def main(overrides: list[str], multirun: bool) -> int:
    """Build an index, or what is missing of it, by one worker or (-m worker=0,1) by several. Returns 0; raises InputError."""
    results: list[tuple[Path, Embedded]] = launch(build_job, overrides, multirun, config_name="index")
    folder = results[0][0]
    pictures = sum(done.pictures for _, done in results)
    encoding, waiting = (sum(getattr(done, what) for _, done in results) for what in ("encoding", "waiting"))
    manifest = read_facts(folder / "manifest.json")
    busy = f", the encoder at work {encoding / (encoding + waiting):.0%} of the time" if pictures else ""
    say(f"{folder}: {pictures} pictures embedded now{busy}")
    say(described(manifest))
    if manifest["corpus"]["rejects"]:
        say(f"  {manifest['corpus']['rejects']} pictures could not be used: {folder / 'rejects.json'} says why")
    return 0


def described(manifest: dict[str, object]) -> str:
    """An index in two lines."""
    corpus, encoder, source = manifest["corpus"], manifest["encoder"], manifest["source"]
    assert isinstance(corpus, dict) and isinstance(encoder, dict) and isinstance(source, dict)
    shards = manifest["shards"]
    assert isinstance(shards, list)
    return (
        f"  corpus {source['name']} ({source['kind']}): {corpus['pictures']} pictures, {corpus['sha256'][:10]}; "
        f"{len(shards)} shards\n"
        f"  encoder {encoder['name']} {encoder['weights_sha256'][:10]}, {encoder['metric']}, "
        f"{manifest['dimensions']} dimensions, float16"
    )


def build_job(cfg: DictConfig) -> tuple[Path, Embedded]:
    """One worker: does shards until none is missing, waiting for those that others do in case they die over them."""
    try:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} is missing: say {error.full_key}=...") from error
    if cfg.loaders is None:
        cfg.loaders = min(8, os.cpu_count() or 1)
    for key in ("shard_size", "batch_size", "loaders", "threads"):
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], int) or cfg[key] < 1:
            raise InputError(f"{key}={cfg[key]}: a whole number from 1 is needed")
    if isinstance(cfg.least_side, bool) or not isinstance(cfg.least_side, int) or cfg.least_side < 0:
        raise InputError(f"least_side={cfg.least_side}: a whole number of pixels is needed, 0 to take all")
    torch.set_num_threads(cfg.threads)
    folder = Path(str(cfg.out))
    source: Source = build(cfg.corpus, "corpus")
    encoder: Encoder = build(cfg.encoder, "encoder")
    require_room(folder)
    claims = Claims(folder / "claims")
    wait_for(claims, "plan")
    try:
        require_same_index(folder, source, encoder, cfg.least_side)
        remember_encoder(folder, cfg.encoder)
        put_aside_damaged(folder)
        extend_plan(folder, source, cfg.shard_size)
    finally:
        claims.release("plan")
    done = embed_missing(folder, source, encoder, claims, cfg)
    wait_for(claims, "manifest")
    try:
        finish(folder)
    finally:
        claims.release("manifest")
    claims.clear_dead()  # of a worker that was killed between a shard and its release
    if not claims.any_there():  # or while it wrote one
        for part in folder.glob("**/.*.part"):
            part.unlink(missing_ok=True)
    return folder, done


def wait_for(claims: Claims, name: str) -> None:
    """Take a claim, however long a living worker holds it."""
    while not claims.take(name):
        time.sleep(POLL)


def put_aside_damaged(folder: Path) -> None:
    """Rename shards that cannot be opened, so that they are made anew."""
    for number in range(len(planned(folder))):
        path = shard_path(folder, number)
        if path.exists():
            try:
                Shard.open(path)
            except InputError as error:
                say(f"warning: {error}; {set_aside(path)}")


def embed_missing(folder: Path, source: Source, encoder: Encoder, claims: Claims, cfg: DictConfig) -> Embedded:
    """Do one missing shard after the other until there is none, whoever did them. What this worker did."""
    total = Embedded()
    with Meter(folder, cfg.shard_size) as meter:
        while missing := missing_shards(folder):
            did_one = False
            for number in missing:
                with claims.claimed(f"{number:06d}") as mine:
                    # Whoever had the claim before may have finished the shard since it was looked for.
                    if mine and not shard_path(folder, number).exists():
                        done = build_shard(
                            folder, number, source, encoder, cfg.batch_size, cfg.loaders, meter.show, cfg.least_side
                        )
                        meter.finished(number, done)
                        did_one = True
                        total.pictures += done.pictures
                        total.rejects += done.rejects
                        total.encoding += done.encoding
                        total.waiting += done.waiting
            if not did_one:
                time.sleep(POLL)
    return total


class Meter:
    """How far a build is: a bar on a terminal, else a line for each shard; pictures per second and time left."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        self.folder, self.shard_size = folder, shard_size
        self.n_before = self.n_missing = len(missing_shards(folder))
        self.n_pictures = 0
        self.started = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, disable=not sys.stderr.isatty() or beside_others())
        self.task = self.bar.add_task("shards", total=self.n_before)

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def show(self, now: Embedded) -> None:
        """After a batch of the shard at work."""
        rate = (self.n_pictures + now.pictures) / self.seconds
        part = min(now.pictures / self.shard_size, 1)
        self.bar.update(
            self.task, completed=self.n_before - self.n_missing + part, description=f"{rate:.1f} pictures/s, shards"
        )

    def finished(self, number: int, done: Embedded) -> None:
        """After a shard."""
        self.n_pictures += done.pictures
        self.n_missing = len(missing_shards(self.folder))
        self.bar.update(self.task, completed=self.n_before - self.n_missing)
        if self.bar.disable:
            # By all workers together: what is left at the pace since this one began.
            left = self.n_missing * self.seconds / max(self.n_before - self.n_missing, 1)
            rate = self.n_pictures / self.seconds
            rejects = f" ({done.rejects} rejects)" if done.rejects else ""
            say(
                f"shard {number}: {done.pictures} pictures{rejects}, {rate:.1f} pictures/s; {self.n_missing} shards missing, "
                f"about {duration(left)} left"
            )


def duration(seconds: float) -> str:
    """0:05:07"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
