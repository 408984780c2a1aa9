"""`adir score`: read the restored images of a results folder and score them again."""

from collections import Counter
from pathlib import Path

from adir.data.base import Corpus
from adir.errors import InputError, count_of
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
    """Score all restored images again and write the scores into their records.

    Old scores of metrics that are not in `scoring=...` are kept. The ground truth is read from the
    data set that the record names, and must have the hash that the record contains.

    Args:
        folder: results folder.
        overrides: KEY=VALUE settings such as scoring=default.

    Returns:
        0, or 1 if any image lacks a score, because a metric has no value, the restoration failed,
        the record is damaged, or `rescored` raised InputError.

    Raises:
        InputError: if the folder has no record of a restored image.
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
        raise InputError(f"{folder}: contains no restored images; give a results folder")
    for name, reasons in empty.items():
        for reason, times in Counter(reasons).most_common():
            say(f"{name} stays empty in {times} of {n} records: {reason}")
    if failed:
        say(
            f"{count_of(failed, 'failed image')} without scores; `adir run ... retry=failed` runs "
            "failed images again"
        )
    if bad:
        say(f"{count_of(bad, 'record')} not scored, for the reasons above")
    given = [name for name, reasons in empty.items() if len(reasons) < n]
    say(f"{count_of(n, 'record')} scored with {', '.join(given) or 'no metric'}")
    return 1 if bad or failed or any(empty.values()) else 0


def rescored(record: Record, results: Path, scoring: Scoring) -> Record:
    """Return a copy of a record with new scores.

    Args:
        record: record of a restored image.
        results: results folder.
        scoring: metrics to compute.

    Raises:
        InputError: if the data set no longer has the image or has another one with its id, or if
            the record names no restored image or its file is missing.
    """
    data: Corpus = build(from_plain(record.configuration["data"]), "data")
    image_id = record.image.id
    if image_id not in data.ids:
        raise InputError(
            f"{image_id}: no longer in data set {data.name}, so its scores are not changed"
        )
    x = data.image(image_id)
    if hash_of_image(x) != record.image.sha256:
        raise InputError(
            f"{image_id}: the image in data set {data.name} has changed, so its scores are not "
            "changed"
        )
    if record.restored is None:
        raise InputError(
            f"{image_id}: its record names no restored image, so its scores are not changed"
        )
    scores = scores_of(scoring.score(read_png(results / record.restored), x, data.prompt(image_id)))
    return record.model_copy(
        update={"scores": record.scores | scores, "unavailable": scoring.unavailable}
    )
