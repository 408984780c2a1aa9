"""Name the training set of a prior, and warn if the test set may be part of it.

A prior is a pretrained denoiser. If it was trained on the test images, scores measure its memory,
not restoration.
"""

import re

from adir.harness.records.comparable import path_of
from adir.harness.records.record import Record

COLLECTIONS = {
    "ImageNet": ("imagenet", "ilsvrc"),
    "FFHQ": ("ffhq", "flickrfaces"),
    "CelebA": ("celeba",),
    "LSUN": ("lsun",),
}
"""{image collection: words that identify it}.

The words are searched in a test set's name, path and source, and in the name of a prior's training
set.
"""


def prior_of(record: Record) -> str | None:
    """Return the training set of a record's prior.

    Return None if the record does not name the training set, or if its sampler uses no network.
    """
    if record.prior is None or (record.sampler is not None and record.sampler.n_steps == 0):
        return None
    return record.prior.trained_on


def short_prior(trained_on: str | None) -> str:
    """Return the name of a training set for a table column, cut at the first comma, `;` or `(`.

    `ImageNet (ILSVRC 2012)` becomes `ImageNet`, and None becomes a dash.
    """
    return "–" if trained_on is None else re.split(r"[,;(]", trained_on)[0].strip()


def collections_in(*texts: str | None) -> set[str]:
    """Return the image collections, such as ImageNet, that are named in the texts.

    Spellings do not matter: `image-net` and `ILSVRC2012_val` both name ImageNet.
    """
    plain = [re.sub(r"[^a-z0-9]", "", text.lower()) for text in texts if text]
    return {
        name
        for name, words in COLLECTIONS.items()
        if any(word in text for word in words for text in plain)
    }


def leakage_warning(record: Record) -> str | None:
    """Return a warning if a record's prior may have been trained on its test set, else None.

    The warning appears if the test set and the prior's training set name the same collection.
    """
    of_test_set = collections_in(
        record.image.data, record.image.source, *path_of(record.configuration.get("data"))
    )
    both = sorted(of_test_set & collections_in(prior_of(record)))
    if not both:
        return None
    return (
        f"WARNING: the prior was trained on {' and '.join(both)}, which may include the test set "
        f"{record.image.data}; the scores may show what the prior memorised, unless these images "
        "were excluded from the training"
    )
