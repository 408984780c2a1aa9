"""Convert records to a pandas frame, for notebooks and your own studies.

Example:

      from adir.harness.tables.frames import records_frame
      frame = records_frame("runs/embedded")
      frame.pivot_table(values="psnr", index="adaptation", columns="task")
"""

from pathlib import Path
from typing import Any

import pandas as pd

from adir.harness.records.record import Record
from adir.harness.records.sources import read_sources


def records_frame(*sources: str | Path) -> pd.DataFrame:
    """Return a frame with one line per record of results folders and submissions.

    The columns are the axes (backbone, task and so on), data set, image, cluster, status, hash of
    the cell, hash of y, scores, seconds by stage, and network calls. A missing score is NaN.

    Raises:
        InputError: if the sources hold no records.
    """
    records, _, _ = read_sources([Path(source) for source in sources]).counted()
    frame = pd.DataFrame(map(line_of, records)).astype({"k": "Int64"})
    return frame.astype(
        dict.fromkeys({name for record in records for name in record.scores}, float)
    )


def line_of(record: Record) -> dict[str, Any]:
    """Return {column: value} of one record."""
    image, sampler = record.image, record.sampler
    return {
        **record.axes.model_dump(),
        "data": image.data,
        "image": image.id,
        "cluster": image.cluster or image.id,
        "status": record.status,
        "cell": record.cell,
        "y": None if record.y is None else record.y.sha256,
        **{name: score.value for name, score in record.scores.items()},
        **{f"seconds_{stage}": seconds for stage, seconds in record.seconds.items()},
        "network_evaluations": getattr(sampler, "network_evaluations", None),
        "gradient_evaluations": getattr(sampler, "gradient_evaluations", None),
    }
