"""`adir score`: score the images of a results folder again, from their files and with no model."""

from collections import Counter
from pathlib import Path

from adir.data.base import Corpus
from adir.errors import InputError
from adir.files import write_json
from adir.harness.cells.cell import build
from adir.harness.cells.compose import compose
from adir.harness.cells.paths import from_plain
from adir.harness.records.ledger import DamagedFile, all_records
from adir.harness.records.record import Record, scores_of
from adir.harness.running.grid import say
from adir.images import hash_of_image, read_png
from adir.scoring.metrics import Scoring


def main(folder: Path, overrides: list[str]) -> int:
    """Write the scores of `scoring=...` into every record whose restored image exists; other scores
    stay as they are.

    Ground truths come from the record's data set, and must still have the recorded hash. Returns 0,
    or 1 if a score stays empty, a record is damaged or of a failed image, or a restored image is
    missing. Raises InputError if there is no record of a restored image.
    """
    scoring: Scoring = build(compose(overrides).scoring, "scoring")
    n, bad, failed = 0, 0, 0
    empty: dict[str, list[str]] = {metric.name: [] for metric in scoring.metrics}
    for record in all_records(folder):
        if isinstance(record, DamagedFile):
            say(f"warning: {record}")
            bad += 1
        elif record.status == "done":
            try:
                record = rescored(record, folder, scoring)
                write_json(folder / record.path, record.as_json())
                n += 1
                for name, reasons in empty.items():
                    score = record.scores[name]
                    reasons += [str(score.reason)] if score.value is None else []
            except InputError as error:
                say(f"warning: {error}")
                bad += 1
        else:
            failed += 1
    if not n and not bad:
        raise InputError(f"{folder}: no restored images below it")
    for name, reasons in empty.items():
        for reason, times in Counter(reasons).most_common():
            say(f"{name} stays empty in {times} of {n} records: {reason}")
    if failed:
        say(
            f"{failed} records are of failed images, which have no scores; `adir run ... "
            "retry=failed` runs them again"
        )
    if bad:
        say(f"{bad} records keep their scores, for the reasons above")
    given = [name for name, reasons in empty.items() if len(reasons) < n]
    say(f"{n} records scored with {', '.join(given) or 'nothing'}")
    return 1 if bad or failed or any(empty.values()) else 0


def rescored(record: Record, results: Path, scoring: Scoring) -> Record:
    """Return the record with new scores.

    Raises InputError if the data set no longer has the image.
    """
    data: Corpus = build(from_plain(record.configuration["data"]), "data")
    image_id = record.image.id
    if image_id not in data.ids:
        raise InputError(
            f"{image_id}: no longer in data set {data.name}, so its record keeps its scores"
        )
    x = data.image(image_id)
    if hash_of_image(x) != record.image.sha256:
        raise InputError(
            f"{image_id}: data set {data.name} now holds another image, so its record keeps "
            "its scores"
        )
    if record.restored is None:
        raise InputError(f"{image_id}: its record names no restored image, so it keeps its scores")
    scores = scores_of(scoring.score(read_png(results / record.restored), x, data.prompt(image_id)))
    return record.model_copy(
        update={"scores": record.scores | scores, "unavailable": scoring.unavailable}
    )
