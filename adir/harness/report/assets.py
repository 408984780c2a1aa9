"""Data of the test images in an HTML report: images, error maps, scores and neighbours.

Neighbours are the corpus images to which the denoiser was adapted. As many images as fit are
embedded in the page. The page links to the files of the others.
"""

import json
from pathlib import Path
from typing import Any

from adir.harness.records.layout import stored_images
from adir.harness.records.record import Neighbour, Record
from adir.harness.report.gather import Gathered, Scene
from adir.harness.report.images import (
    HEAT_QUALITY,
    LONGEST_SIDE,
    QUALITY,
    THUMBNAIL,
    PageImages,
    embedded_field,
    error_colours,
    error_map,
    file_in,
    ground_truth,
    open_rgb,
)

# Image files are embedded without loss if they have at most this many bytes in total. Otherwise all
# of them are reduced.
EXACT_BYTES = 12_000_000
NEIGHBOUR_BYTES = 4_000_000  # bytes of the page that are reserved for neighbours
PIXELS = 40_000_000  # most pixels to encode per kind of image: about five seconds


class PageAssets:
    """Data about the test images of a results folder, which the page's scripts read as JSON.

    `fill` returns the data as a dictionary. Its entry "images" is a list of all images, as data
    URIs and links. All other entries refer to an image by its index in this list, or contain None
    if the image is missing.
    """

    def __init__(self, gathered: Gathered, page_folder: Path) -> None:
        self.gathered = gathered
        self.metrics = list(gathered.board.metrics)
        self._names: dict[tuple[str, str | None], int] = {}
        self.neighbours: list[list[Any]] = []
        """[id, index in `images`] of each corpus image that is a neighbour of any test image."""
        self.scenes = [self._texts(scene) for scene in gathered.scenes]
        first = [
            record for scene in gathered.scenes for _, record in self._of_seed(scene, first=True)
        ]
        files = {
            file_in(gathered.folder, name)
            for record in first
            for name in (record.restored, record.y_file)
        }
        n_bytes = sum(file.stat().st_size for file in files if file is not None)
        self.page_images = PageImages(gathered.folder, page_folder, exact=n_bytes <= EXACT_BYTES)
        self.n_embedded = 0
        """The number of test images whose restorations with the first seed are embedded."""

    def fill(self, room: int) -> dict[str, Any]:
        """Return the data about test images, with as many embedded images as fit into `room` bytes.

        Images are embedded in this order: ground truth, y and the images of each row's first seed
        (see `_of_seed`); thumbnails of neighbours; images of the other seeds.
        """
        room -= len(json.dumps([self.scenes, self.neighbours]))
        for_neighbours = min(NEIGHBOUR_BYTES, room // 4)
        self.page_images.allow(room - for_neighbours, PIXELS)
        for scene, data in zip(self.gathered.scenes, self.scenes, strict=True):
            self._common_images(scene, data)
            self._restored(scene, data, first=True)
            self.n_embedded += not self.page_images.full
        more = not self.page_images.full
        self.page_images.allow(for_neighbours, PIXELS)
        for scene in self.gathered.scenes:
            self._neighbour_images(scene)
        self.page_images.allow(0, PIXELS if more else 0)
        for scene, data in zip(self.gathered.scenes, self.scenes, strict=True):
            self._restored(scene, data, first=False)
        return {
            "scenes": self.scenes,
            "neighbours": self.neighbours,
            "images": self.page_images.sources,
            "errorColours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in error_colours()],
        }

    def embedding_note(self) -> str:
        """Return a text that says which images are embedded, which are linked, and why."""
        n, page_images = len(self.scenes), self.page_images
        how = (
            "exact in every pixel"
            if page_images.exact
            else f"reduced (WebP of quality {QUALITY}, at most {LONGEST_SIDE} pixels a side)"
        )
        if not page_images.linked:
            return (
                f"All {len(page_images.sources):,} images are in this file, {how}; "
                f"neighbours are {THUMBNAIL} pixels wide."
            )
        which = (
            f"The first seed's images are in this file, {how}; {page_images.linked:,} of "
            "further seeds are links"
            if self.n_embedded == n
            else f"The first {self.n_embedded:,} of {n:,} test images (counted once per task) are "
            f"in this file, {how}; "
            f"{page_images.linked:,} files are links"
        )
        return (
            f"{which} into the results folder, which must stay where it is. With every image in "
            "this file, the page would be larger than 25 MB or take too long to make. Linked "
            "images have no error map."
        )

    def _of_seed(self, scene: Scene, first: bool) -> list[tuple[int, Record]]:
        """Return the finished records of a test image, as (number of the leaderboard row, record).

        If `first` is true, they are the records of each row's first seed, otherwise those of all
        other seeds. A row's first seed is `Gathered.first_seed`, which the page shows first, or the
        row's lowest seed if the row lacks it.
        """
        chosen = []
        for row, seeds in scene.restored.items():
            shown = self.gathered.first_seed if self.gathered.first_seed in seeds else min(seeds)
            chosen += [(row, seeds[seed]) for seed in sorted(seeds) if (seed == shown) == first]
        return chosen

    def _texts(self, scene: Scene) -> dict[str, Any]:
        """Return the data about a test image, without its images.

        Other methods add the images later. Scores and distances are formatted as strings.
        """
        return {
            "task": scene.task,
            "data": scene.data,
            "id": scene.image_id,
            "sigma": next((record.sigma_y for record in scene.done), None),
            "seeds": scene.seeds,
            "excluded": sorted({name for record in scene.done for name in record.excluded}),
            "cells": {
                row: {seed: self._record_texts(record) for seed, record in seeds.items()}
                for row, seeds in scene.cells.items()
            },
        }

    def _record_texts(self, record: Record) -> dict[str, Any]:
        if record.status != "done":
            return {"error": str(record.error)}
        values = [record.value(name) for name in self.metrics]
        text: dict[str, Any] = {
            "scores": [None if value is None else f"{value:#.4g}" for value in values]
        }
        if record.neighbours:
            corpus = corpus_of(record)
            text["near"] = [
                [
                    self._neighbour(near, corpus),
                    None if near.distance is None else f"{near.distance:.3f}",
                ]
                for near in record.neighbours
            ]
        return text

    def _neighbour(self, near: Neighbour, corpus: str | None) -> int:
        """Return the index of a neighbour in `neighbours`, adding the neighbour if it is new.

        Two neighbours count as the same image if they have the same id and hash. If the hashes are
        unknown, they must come from the same corpus instead.
        """
        number = self._names.setdefault((near.id, near.image or corpus), len(self.neighbours))
        if number == len(self.neighbours):
            self.neighbours.append([near.id, None])
        return number

    def _common_images(self, scene: Scene, data: dict[str, Any]) -> None:
        """Add the ground truth and y to `data`, the data about a test image."""
        data["truth"] = self.page_images.file(next(iter(stored_images(scene.sha256)), None))
        if data["truth"] is None:
            field = embedded_field(scene.image_id, scene.sha256)
            data["truth"] = self.page_images.made(
                f"truth {scene.image_id}", field, *self.page_images.size
            )
        data["y"] = self.page_images.file(scene.done[0].y_file) if scene.done else None

    def _restored(self, scene: Scene, data: dict[str, Any], first: bool) -> None:
        """Add restored images and their error maps to `data`, the data about a test image.

        If `first` is true, the images of each row's first seed are added (see `_of_seed`),
        otherwise those of all other seeds.
        """
        folder, page_images = self.gathered.folder, self.page_images
        truth = None if page_images.full else ground_truth(folder, scene.image_id, scene.sha256)
        for row, record in self._of_seed(scene, first):
            shown, file = data["cells"][row][record.seed], record.restored
            shown["image"] = page_images.file(file)
            if truth is not None and shown["image"] is not None and not page_images.full:
                heat = error_map(open_rgb(folder, file), truth)
                shown["heat"] = page_images.made(f"heat {file}", heat, LONGEST_SIDE, HEAT_QUALITY)

    def _neighbour_images(self, scene: Scene) -> None:
        """Add thumbnails of a test image's neighbours.

        The neighbours are those in the records of each row's first seed (see `_of_seed`).
        """
        for _, record in self._of_seed(scene, first=True):
            corpus = corpus_of(record)
            source = ((record.configuration.get("retrieval") or {}).get("corpus") or {}).get(
                "_target_", ""
            )
            for near in record.neighbours:
                entry = self.neighbours[self._neighbour(near, corpus)]
                if entry[1] is None and not self.page_images.full:
                    files = (
                        open_rgb(self.gathered.folder, name)
                        for name in reversed(stored_images(near.image))
                    )
                    image = next((found for found in files if found is not None), None)
                    if image is None and str(source).endswith(".EmbeddedCorpus"):
                        image = embedded_field(near.id, None)
                    entry[1] = self.page_images.made(
                        f"near {near.id} {near.image or corpus}", image, THUMBNAIL, QUALITY
                    )


def corpus_of(record: Record) -> str | None:
    """Return the hash of the corpus that holds a record's neighbours; None without retrieval."""
    found = record.identity.get("retrieval")
    return found.get("corpus") if isinstance(found, dict) else None
