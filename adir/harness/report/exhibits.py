"""The pictures of a report and what belongs to each: scores, neighbours, errors; as much as fits into the page."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from adir.harness.records.layout import stored_pictures
from adir.harness.records.record import Neighbour, Record
from adir.harness.report.gather import Gathered, Scene
from adir.harness.report.pictures import (
    LONGEST_SIDE,
    QUALITY,
    THUMBNAIL,
    Album,
    embedded_corpus_field,
    embedded_test_field,
    error_colours,
    error_map,
    is_inside,
    open_rgb,
)

EXACT_BYTES = 12_000_000  # of picture files that are embedded without loss; above it they are made smaller
NEIGHBOUR_BYTES = 4_000_000  # of the page, kept free for neighbours
PIXELS = 40_000_000  # encoded at most of each kind: about five seconds


class Exhibits:
    """Test pictures for the page's data block.

    A picture is a number into `images`, whose entries are data URIs or links; null where there is none.
    """

    def __init__(self, gathered: Gathered, page_folder: Path) -> None:
        self.gathered = gathered
        self.metrics = list(gathered.board.metrics)
        self._names: dict[tuple[str, str | None], int] = {}
        self.neighbours: list[list[Any]] = []
        """[id, picture] of each picture that is a neighbour of any"""
        self.scenes = [self._texts(scene) for scene in gathered.scenes]
        exact = self._bytes_of_files() <= EXACT_BYTES
        self.album = Album(gathered.folder, page_folder, exact)
        self.n_embedded = 0
        """Test pictures whose first seed is embedded."""

    def text_bytes(self) -> int:
        """About how many bytes of the page all this takes without its pictures."""
        return len(json.dumps([self.scenes, self.neighbours]))

    def fill(self, room: int) -> dict[str, Any]:
        """The data block's part, with pictures in `room` bytes: what is shown first goes first."""
        for_neighbours = min(NEIGHBOUR_BYTES, room // 4)
        self.album.allow(room - for_neighbours, PIXELS)
        for scene, data in zip(self.gathered.scenes, self.scenes, strict=True):
            self._common_pictures(scene, data)
            self._restored(scene, data, first=True)
            self.n_embedded += not self.album.full
        more = not self.album.full
        self.album.allow(for_neighbours, PIXELS)
        for scene, data in zip(self.gathered.scenes, self.scenes, strict=True):
            self._neighbour_pictures(scene, data)
        self.album.allow(0, PIXELS if more else 0)
        for scene, data in zip(self.gathered.scenes, self.scenes, strict=True):
            self._restored(scene, data, first=False)
        return {
            "scenes": self.scenes,
            "neighbours": self.neighbours,
            "images": self.album.sources,
            "errorColours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in error_colours()],
        }

    def said(self) -> str:
        """Which pictures are in the page, which are not, and why."""
        n, album = len(self.scenes), self.album
        how = (
            "exact in every pixel"
            if album.exact
            else f"reduced (WebP of quality {QUALITY}, at most {LONGEST_SIDE} pixels a side)"
        )
        if not album.linked:
            return f"All {album.embedded:,} pictures are in this file, {how}; neighbours are {THUMBNAIL} pixels wide."
        if self.n_embedded == n:
            which = f"The first seed's pictures are in this file, {how}; {album.linked:,} of further seeds are links"
        else:
            which = (
                f"The first {self.n_embedded:,} of {n:,} test pictures (counted once a task) are in this file, {how}; "
                f"{album.linked:,} files are links"
            )
        return (
            f"{which} into the results folder and show only while it lies where it was, because with all of them the page "
            "would be larger than 25 MB or take too long to make. Linked pictures have no error map."
        )

    def _bytes_of_files(self) -> int:
        """Of the files that are shown first."""
        total = 0
        for scene in self.gathered.scenes:
            files = [record.picture for record in self._of_seed(scene, first=True)]
            for name in [*files, *(record.y_file for record in scene.done[:1])]:
                if name is None or not is_inside(name):
                    continue
                path = self.gathered.folder / name
                total += path.stat().st_size if path.is_file() else 0
                if total > EXACT_BYTES:
                    return total
        return total

    def _of_seed(self, scene: Scene, first: bool) -> list[Record]:
        """The restored records of the seed that is shown first (of a row without it, its lowest), or those of the others."""
        chosen = []
        for seeds in scene.cells.values():
            done = [seed for seed in sorted(seeds) if seeds[seed].status == "done"]
            shown = self.gathered.first_seed if self.gathered.first_seed in done else next(iter(done), None)
            chosen += [seeds[seed] for seed in done if (seed == shown) == first]
        return chosen

    def _texts(self, scene: Scene) -> dict[str, Any]:
        """Everything but the pictures. Scores are texts, as people read them."""
        done = scene.done
        noise = done[0].sigma_y if done else None
        return {
            "task": scene.task,
            "data": scene.data,
            "id": scene.image_id,
            "sigma": noise,
            "seeds": scene.seeds,
            "excluded": sorted({name for record in done for name in record.excluded}),
            "cells": {
                row: {seed: self._record_texts(record) for seed, record in seeds.items()}
                for row, seeds in scene.cells.items()
            },
        }

    def _record_texts(self, record: Record) -> dict[str, Any]:
        if record.status != "done":
            return {"error": str(record.error)}
        values = [record.value(name) for name in self.metrics]
        text: dict[str, Any] = {"scores": [None if value is None else f"{value:#.4g}" for value in values]}
        if record.neighbours:
            corpus = corpus_of(record)
            text["near"] = [
                [self._neighbour(near, corpus), None if near.distance is None else f"{near.distance:.3f}"]
                for near in record.neighbours
            ]
        return text

    def _neighbour(self, near: Neighbour, corpus: str | None) -> int:
        """Its number in `neighbours`: the same id in another corpus is another picture."""
        key = (near.id, near.picture or corpus)
        if key not in self._names:
            self._names[key] = len(self.neighbours)
            self.neighbours.append([near.id, None])
        return self._names[key]

    def _truth(self, scene: Scene) -> tuple[str | None, Image.Image | None]:
        """(file of x among the results, or None; x itself where it is an embedded field that can be built again)."""
        sha256 = next((record.image.sha256 for record in scene.done), None)
        for name in stored_pictures(sha256)[:1]:
            if (self.gathered.folder / name).is_file():
                return name, None
        return None, embedded_test_field(scene.image_id, sha256)

    def _common_pictures(self, scene: Scene, data: dict[str, Any]) -> None:
        """Ground truth and y."""
        name, built = self._truth(scene)
        data["truth"] = self.album.file(name) if name else self.album.truth(f"truth {scene.image_id}", built)
        data["y"] = self.album.file(scene.done[0].y_file) if scene.done else None

    def _restored(self, scene: Scene, data: dict[str, Any], first: bool) -> None:
        """Restored pictures and their error maps."""
        name, truth = self._truth(scene)
        if name is not None and not self.album.full:
            truth = open_rgb(self.gathered.folder / name)
        rows = {id(record): (row, seed) for row, seeds in scene.cells.items() for seed, record in seeds.items()}
        for record in self._of_seed(scene, first):
            row, seed = rows[id(record)]
            shown, file = data["cells"][row][seed], record.picture
            shown["picture"] = self.album.file(file)
            if truth is not None and file is not None and shown["picture"] is not None and not self.album.full:
                heat = error_map(open_rgb(self.gathered.folder / file), truth)
                shown["heat"] = self.album.heat(f"heat {file}", heat)

    def _neighbour_pictures(self, scene: Scene, data: dict[str, Any]) -> None:
        """Thumbnails of the neighbours that the first seed had."""
        for record in self._of_seed(scene, first=True):
            retrieval = record.configuration.get("retrieval") or {}
            embedded = str((retrieval.get("corpus") or {}).get("_target_", "")).endswith(".EmbeddedCorpus")
            corpus = corpus_of(record)
            for near in record.neighbours:
                if self.album.full:
                    return
                entry = self.neighbours[self._neighbour(near, corpus)]
                if entry[1] is not None:
                    continue
                files = [self.gathered.folder / name for name in reversed(stored_pictures(near.picture))]
                picture = next((found for file in files if (found := open_rgb(file)) is not None), None)
                if picture is None and embedded:
                    picture = embedded_corpus_field(near.id)
                entry[1] = self.album.thumbnail(f"near {near.id} {near.picture or corpus}", picture)


def corpus_of(record: Record) -> str | None:
    """Return the hash of the corpus that the neighbours come from."""
    found = record.identity.get("retrieval")
    return found.get("corpus") if isinstance(found, dict) else None
