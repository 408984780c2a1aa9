"""What a row's prior was trained on, and whether the test set may be part of it: then a score is
memory, not restoration.
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
"""{collection: words by which a test set's name, path or source, or a prior's, tells that it is
from there}
"""


def prior_of(record: Record) -> str | None:
    """Return what the prior of a record was trained on; None where nobody tells, and for a sampler
    without a network.
    """
    if record.prior is None or (record.sampler is not None and record.sampler.n_steps == 0):
        return None
    return record.prior.trained_on


def short_prior(trained_on: str | None) -> str:
    """Return the name of the training set for a column, without its comments:

    `ImageNet` of `ImageNet (ILSVRC 2012)`.
    """
    return "–" if trained_on is None else re.split(r"[,;(]", trained_on)[0].strip()


def collections_in(*texts: str | None) -> set[str]:
    """Return the collections that texts name, however they are written:

    `image-net`, `ILSVRC2012_val`.
    """
    plain = [re.sub(r"[^a-z0-9]", "", text.lower()) for text in texts if text]
    return {
        name
        for name, words in COLLECTIONS.items()
        if any(word in text for word in words for text in plain)
    }


def seen_note(record: Record) -> str | None:
    """Return the warning for a record whose test set is of a collection that its prior was trained
    on; else None.
    """
    of_test_set = collections_in(
        record.image.data, record.image.source, *path_of(record.configuration.get("data"))
    )
    both = sorted(of_test_set & collections_in(prior_of(record)))
    if not both:
        return None
    return (
        f"WARNING: the prior was trained on {' and '.join(both)}, and so may be the test set "
        f"{record.image.data}: unless its "
        "images were kept out of that training, the scores tell what the prior remembers"
    )
