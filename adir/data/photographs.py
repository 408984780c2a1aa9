"""The photographs in scikit-image's wheel: their files, their origins and their pixels."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from adir.errors import InputError
from adir.files import sha256_of_file

# SHA-256 of each file. All results depend on the pixels, so a changed file must be refused.
PHOTOGRAPHS = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "cell.png": "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "moon.png": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "text.png": "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1",
}

# Origins according to skimage.data's docstrings (scikit-image 0.26). A missing key is unknown.
CC0 = "CC0 1.0"
FREE = "no known copyright restrictions"
ORIGINS = {
    "astronaut": {
        "licence": "public domain",
        "author": "NASA",
        "source": "https://flic.kr/p/r9qvLn",
    },
    "brick": {"licence": CC0, "source": "https://cc0textures.com/view.php?tex=Bricks25"},
    "camera": {"licence": CC0, "author": "Lav Varshney"},
    "cell": {"licence": CC0, "source": "https://doi.org/10.1364/OE.26.010729"},
    "chelsea": {"licence": CC0, "author": "Stefan van der Walt"},
    "coffee": {"licence": CC0, "author": "Rachel Michetti"},
    "coins": {
        "licence": FREE,
        "source": "https://www.brooklynmuseum.org/opencollection/archives/image/51611",
    },
    "grass": {
        "licence": CC0,
        "source": "https://www.deviantart.com/linolafett/art/Grass-01-434853879",
    },
    "gravel": {"licence": CC0, "source": "https://cc0textures.com/view.php?tex=Gravel04"},
    "hubble_deep_field": {
        "licence": "public domain",
        "author": "NASA",
        "source": "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    },
    "ihc": {"licence": FREE, "author": "Center for Microscopy And Molecular Imaging (CMMI)"},
    "moon": {},
    "motorcycle_left": {
        "author": "Scharstein et al. (2014), Middlebury stereo benchmark",
        "source": "http://vision.middlebury.edu/stereo/data/scenes2014/",
    },
    "page": {},
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
    "text": {"licence": FREE, "source": "https://en.wikipedia.org/wiki/File:Corner.png"},
}


@cache
def reduced(photograph: str, scale: int) -> np.ndarray:
    """Return a photograph, downsampled by `scale` with Pillow's antialiased bicubic filter.

    Args:
        photograph: file name without suffix.
        scale: integer factor; 1 keeps the original size.

    Returns:
        (H // scale, W // scale, 3) uint8; a grey photograph is repeated in three channels.

    Raises:
        InputError: if scikit-image is not installed or its file has another hash.
    """
    file = next(name for name in PHOTOGRAPHS if Path(name).stem == photograph)
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise InputError(
            "the images of this data set are crops of photographs in scikit-image, which is not "
            "installed; run `pip install scikit-image`"
        )
    # skimage.data's own functions may download.
    path = Path(spec.origin).parent / "data" / file
    if not path.is_file() or sha256_of_file(path) != PHOTOGRAPHS[file]:
        raise InputError(
            f"{path}: the images of this data set are crops of the photographs in scikit-image "
            "0.26, but this photograph is missing or differs; install scikit-image 0.26"
        )
    # The colour profile is ignored: applying rocket.jpg's (Adobe RGB) would change all published
    # results on its fields.
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if scale > 1:
        width, height = image.width // scale, image.height // scale
        box = (0, 0, width * scale, height * scale)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.array(image)
