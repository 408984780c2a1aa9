"""Make the Parquet file of `data=unseen` and `retrieval=unseen` from the whole of Caltech-101.

    python benchmarks/unseen_images.py caltech101_128.parquet

The file gets every image of the split `corpus`. Of the split `test` it gets the first three of each
category by `source_file`. JPEG files are copied, not encoded again. The source needs the columns
image, category, split and source_file.
"""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from adir.data.corpus import UNSEEN
from adir.files import write_bytes
from benchmarks.common import parser_of

PER_CATEGORY = 3
COLUMNS = ["image", "category", "split", "source_file"]
ATTRIBUTION = {
    "licence": "CC BY 4.0",
    "author": "Fei-Fei Li, Marco Andreetto, Marc'Aurelio Ranzato and Pietro Perona",
    "source": "https://doi.org/10.22002/D1.20086",
}


def chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the chosen test images, then the corpus images, each sorted by `source_file`."""
    test, corpus, taken = [], [], Counter[str]()
    for row in sorted(rows, key=lambda row: row["source_file"]):
        if row["split"] == "corpus":
            corpus.append(row)
        elif row["split"] == "test" and taken[row["category"]] < PER_CATEGORY:
            taken[row["category"]] += 1
            test.append(row)
    return test + corpus


def main() -> None:
    parser = parser_of(__doc__, UNSEEN, "file of `data=unseen`")
    parser.add_argument("source", type=Path, help="caltech101_128.parquet")
    args = parser.parse_args()
    rows = chosen(parquet.read_table(args.source, columns=COLUMNS).to_pylist())
    buffer = io.BytesIO()
    parquet.write_table(
        pa.Table.from_pylist([row | ATTRIBUTION for row in rows]), buffer, compression="zstd"
    )
    write_bytes(args.out, buffer.getvalue())
    print(
        f"{args.out}: {dict(Counter(row['split'] for row in rows))}, {len(buffer.getvalue())} bytes"
    )


if __name__ == "__main__":
    main()
