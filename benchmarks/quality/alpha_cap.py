"""Measure the denoiser's error on the ground truth if alpha, the share of the update, were capped.

    python benchmarks/quality/alpha_cap.py FOLDER --data domains

The script reads the trained adapters of a grid that was run with oracle=true. It restores no image.
Its table is in results/embedded/adaptation.md.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch

from adir.adaptation.adapters import Full
from adir.adaptation.base import adapted
from adir.harness.cells.cell import Cell, resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.records.record import OracleError, Record
from adir.harness.running.pipeline import eps_errors, oracle_eps_change
from adir.harness.running.stores import AdapterStore
from benchmarks.common import finished_records

CAPS = (0.25, 0.5, 0.75)


def main() -> None:
    """Print one row per task and mode: mean changes of the error in percent, uncapped and capped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True, help="the data set of the grid")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cell = resolve_cell(compose([f"data={options.data}"]))
    changes: dict[tuple[str, str], dict[str, list[list[float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in finished_records(options.folder):
        if record.adapter is None or not record.oracle or record.axes.adapter != "full":
            continue
        key = record.axes.task, record.axes.adaptation
        cluster = record.image.cluster or record.image.id
        changes[key][cluster].append(changes_of(cell, record, options.folder))
    print(
        "| task | mode | images | accepted | as it is | "
        f"{' | '.join(f'at most {cap:g}' for cap in CAPS)} |"
    )
    print("|---|---|---|---|---|" + "---|" * len(CAPS))
    for (task, mode), clusters in sorted(changes.items()):
        rows = [row for cluster in clusters.values() for row in cluster]
        means = [
            mean(mean(row[i] for row in cluster) for cluster in clusters.values())
            for i in range(1 + len(CAPS))
        ]
        accepted = sum(row[0] != 0 for row in rows)
        print(
            f"| {task} | {mode} | {len(rows)} | {accepted} | "
            f"{' | '.join(f'{value:+.2f}' for value in means)} |"
        )


def changes_of(cell: Cell, record: Record, folder: Path) -> list[float]:
    """Return the changes of the error in percent: with the record's alpha, then with each cap."""
    found = [oracle_eps_change(record.oracle)]
    alpha = record.adapter.held_out.alpha
    stored = AdapterStore(folder).find(record.adapter.key, print)
    assert stored is not None
    attached = Full().attach(cell.backbone.network)
    attached.initialise(torch.Generator())
    scaled = {cap: attached.scaled(stored.tensors, min(1.0, cap / alpha)) for cap in CAPS if alpha}
    attached.remove()
    for cap in CAPS:
        if alpha <= cap:
            found.append(found[0])
            continue
        with adapted(cell.backbone.network, Full(), scaled[cap]):
            tuned = eps_errors(cell, cell.data.image(record.image.id))
        found.append(
            oracle_eps_change(
                tuple(
                    OracleError(t=e.t, untuned=e.untuned, adapted=tuned[e.t]) for e in record.oracle
                )
            )
        )
    return found


if __name__ == "__main__":
    main()
