"""The demo's test set, the other embedded test fields and the embedded corpus: pictures that need no download.

All are fields cut from the photographs inside scikit-image's wheel. A field is 128x128 pixels of a photograph reduced by a
whole factor s; its id says which: `chelsea-s1-y040-x275` is the window with that top-left corner, in pixels of the reduced
photograph. No corpus field shares a pixel of its photograph with a test field, at any scale. The right motorcycle of the
stereo pair, a near-copy of the left, is left out, and so are drawings.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from adir.data.base import Corpus
from adir.errors import InputError
from adir.files import sha256_of_bytes, sha256_of_file
from adir.images import from_uint8

SIZE = 128  # pixels a side of every field
FLAT = 4.0  # grey levels; see `is_flat`

# file: SHA-256. The pixels are part of every result, so another edition of a photograph must not slip in.
PHOTOGRAPHS = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}

# What scikit-image 0.26 says of each (skimage.data's docstrings); what it does not say is not known.
CC0 = "CC0 1.0"
FREE = "no known copyright restrictions"
ORIGINS = {
    "astronaut": {"licence": "public domain", "author": "NASA", "source": "https://flic.kr/p/r9qvLn"},
    "brick": {"licence": CC0, "source": "https://cc0textures.com/view.php?tex=Bricks25"},
    "camera": {"licence": CC0, "author": "Lav Varshney"},
    "chelsea": {"licence": CC0, "author": "Stefan van der Walt"},
    "coffee": {"licence": CC0, "author": "Rachel Michetti"},
    "coins": {"licence": FREE, "source": "https://www.brooklynmuseum.org/opencollection/archives/image/51611"},
    "grass": {"licence": CC0, "source": "https://www.deviantart.com/linolafett/art/Grass-01-434853879"},
    "gravel": {"licence": CC0, "source": "https://cc0textures.com/view.php?tex=Gravel04"},
    "hubble_deep_field": {
        "licence": "public domain",
        "author": "NASA",
        "source": "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    },
    "ihc": {"licence": FREE, "author": "Center for Microscopy And Molecular Imaging (CMMI)"},
    "motorcycle_left": {
        "author": "Scharstein et al. (2014), Middlebury stereo benchmark",
        "source": "http://vision.middlebury.edu/stereo/data/scenes2014/",
    },
    "retina": {
        "licence": CC0,
        "author": "Mikael Häggström",
        "source": "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
    },
    "rocket": {
        "licence": "public domain",
        "author": "SpaceX",
        "source": "https://www.flickr.com/photos/spacexphotos/16511594820/in/photostream/",
    },
}

# Strides of corpus fields, in reduced pixels, by scale. Textures, the retina and the stars repeat themselves: fewer.
STRIDES = {1: 40, 2: 24, 3: 24}
STRIDES_OF = {
    "brick": {1: 64, 2: 64},
    "grass": {1: 128, 2: 64},
    "gravel": {1: 128, 2: 64},
    "hubble_deep_field": {2: 64},
    "retina": {2: 48, 3: 32, 4: 32},
}


class Field(NamedTuple):
    """A 128x128 window of a photograph reduced by `scale`, its top-left corner (y, x) in reduced pixels."""

    photograph: str
    scale: int
    y: int
    x: int

    @property
    def id(self) -> str:
        return f"{self.photograph}-s{self.scale}-y{self.y:03d}-x{self.x:03d}"

    def footprint(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the photograph's own pixels that the field depends on, ends exclusive.

        A reduced pixel draws on the bicubic kernel's support, 2 scale to either side of its centre; 3 scale around the
        window leave room to spare.
        """
        margin = 3 * self.scale
        top, left = self.scale * self.y - margin, self.scale * self.x - margin
        return top, left, top + self.scale * SIZE + 2 * margin, left + self.scale * SIZE + 2 * margin


TEST_FIELDS = (
    Field("astronaut", 1, 14, 164),
    Field("astronaut", 1, 330, 90),
    Field("brick", 2, 0, 0),
    Field("camera", 2, 20, 75),
    Field("chelsea", 1, 50, 105),
    Field("coffee", 2, 2, 80),
    Field("coins", 1, 20, 250),
    Field("ihc", 2, 0, 120),
    Field("motorcycle_left", 1, 270, 320),
    Field("motorcycle_left", 2, 120, 230),
    Field("retina", 3, 147, 17),
    Field("rocket", 2, 80, 98),
)
# Chosen to differ: bricks whose like the corpus holds, an eye whose like it does not, an object in between.
DEMO = ("brick-s2-y000-x000", "chelsea-s1-y050-x105", "motorcycle_left-s2-y120-x230")


def is_flat(pixels: np.ndarray) -> bool:
    """Whether there is little to restore: over half of the 16x16 tiles have a standard deviation below FLAT."""
    grey = pixels.astype(np.float64).mean(2).reshape(SIZE // 16, 16, SIZE // 16, 16)
    return bool((grey.std(axis=(1, 3)) < FLAT).mean() > 0.5)


@cache
def reduced(photograph: str, scale: int) -> np.ndarray:
    """(H // scale, W // scale, 3) uint8: the photograph reduced by `scale`, antialiased bicubic; grey ones repeated."""
    file = next(name for name in PHOTOGRAPHS if Path(name).stem == photograph)
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise InputError("the embedded pictures come with scikit-image, which is missing: pip install scikit-image")
    path = Path(spec.origin).parent / "data" / file  # read from disk: skimage.data's functions may download
    if not path.is_file():
        raise InputError(f"{path}: missing from this edition of scikit-image; install scikit-image 0.26")
    if sha256_of_file(path) != PHOTOGRAPHS[file]:
        raise InputError(f"{path}: not the photograph the embedded pictures are cut from; install scikit-image 0.26")
    # As stored: were rocket.jpg's profile (Adobe RGB) applied, all earlier results on its fields would be others.
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if scale > 1:
        width, height = picture.width // scale, picture.height // scale
        box = (0, 0, width * scale, height * scale)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.array(picture)


def cut(field: Field) -> np.ndarray:
    """(128, 128, 3) uint8 pixels of a field."""
    pixels = reduced(field.photograph, field.scale)[field.y : field.y + SIZE, field.x : field.x + SIZE]
    if pixels.shape != (SIZE, SIZE, 3):
        raise ValueError(f"{field.id} reaches beyond its photograph")
    return pixels


def overlap(a: Field, b: Field) -> bool:
    """Whether two fields depend on a common pixel of a photograph."""
    if a.photograph != b.photograph:
        return False
    top, left, bottom, right = a.footprint()
    other_top, other_left, other_bottom, other_right = b.footprint()
    return top < other_bottom and other_top < bottom and left < other_right and other_left < right


@cache
def corpus_fields() -> tuple[Field, ...]:
    """All corpus fields, sorted by id: a regular lattice at each scale, without test ground and without flat fields."""
    fields = []
    for name in sorted(Path(file).stem for file in PHOTOGRAPHS):
        for scale, stride in STRIDES_OF.get(name, STRIDES).items():
            height, width = reduced(name, scale).shape[:2]
            for y in range(0, height - SIZE + 1, stride):
                for x in range(0, width - SIZE + 1, stride):
                    field = Field(name, scale, y, x)
                    if not any(overlap(field, test) for test in TEST_FIELDS) and not is_flat(cut(field)):
                        fields.append(field)
    return tuple(sorted(fields, key=lambda field: field.id))


def test_fields() -> list[tuple[str, Tensor]]:
    """The test pictures: (id, (3, 128, 128) in [-1, 1]) pairs, sorted by id."""
    return sorted(((field.id, from_uint8(cut(field))) for field in TEST_FIELDS), key=lambda pair: pair[0])


test_fields.__test__ = False  # type: ignore[attr-defined]  # its name would make pytest run it wherever it is imported


def manifest(fields: tuple[Field, ...]) -> dict[str, str]:
    """SHA-256 of each field's 128x128x3 bytes, by id: what the pictures are, with this Pillow's resampling."""
    return {field.id: sha256_of_bytes(cut(field).tobytes()) for field in fields}


class EmbeddedCorpus(Corpus):
    """The corpus that works with no download: fields of scikit-image's photographs, none on ground of a test field."""

    def __init__(self) -> None:
        self._fields = {field.id: field for field in corpus_fields()}
        categories = {image_id: field.photograph for image_id, field in self._fields.items()}
        super().__init__("embedded", manifest(corpus_fields()), {}, categories)

    def attribution(self, image_id: str) -> dict[str, str]:
        return ORIGINS[self._fields[image_id].photograph]

    def image(self, image_id: str) -> Tensor:
        return from_uint8(cut(self._fields[image_id]))


class EmbeddedTestFields(Corpus):
    """The 128x128 test fields of the embedded photographs, none of whose ground is in the embedded corpus.

    only: ids to keep, in any order; None keeps all. Raises InputError for an id that is not there.
    """

    def __init__(self, only: list[str] | None = None) -> None:
        fields = {field.id: field for field in TEST_FIELDS}
        for name in only or []:
            if name not in fields:
                raise InputError(f"unknown test field {name!r}; choose from {', '.join(fields)}")
        chosen = fields if only is None else {name: fields[name] for name in only}
        self._photographs = {name: field.photograph for name, field in chosen.items()}
        self._images = {name: image for name, image in test_fields() if name in chosen}
        super().__init__("embedded-test", manifest(tuple(chosen.values())), {})

    def attribution(self, image_id: str) -> dict[str, str]:
        return ORIGINS[self._photographs[image_id]]

    def image(self, image_id: str) -> Tensor:
        return self._images[image_id]


class DemoFields(EmbeddedTestFields):
    """The three test fields that the demo restores."""

    def __init__(self) -> None:
        super().__init__(list(DEMO))
