"""What a plan counts: stages that cells share once, what is done once once."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from adir.harness.cells.cell import resolve_cell
from adir.harness.cells.compose import compose
from adir.harness.planning import plan
from adir.harness.planning.cost import Cost

PRICE = Cost({"measure": 1.0, "adapt": 100.0, "sample": 9.0}, 7.0, 500.0, 2.0, 30.0)


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells that were timed; every cell has the same price."""
    names: list[str] = []
    monkeypatch.setattr(plan, "estimate", lambda cell, folder: names.append(cell.label) or PRICE)
    return names


@pytest.fixture
def priced(
    adir: Callable, tiny: list[str], tmp_path: Path, estimated: list[str]
) -> Callable[..., str]:
    """The last line of a plan in a fresh folder."""

    def line(*words: str) -> str:
        planned = adir("plan", "-m", *tiny, f"results={tmp_path}", *words)
        assert planned.status == 0, planned.err
        return " ".join(re.split(r"\n(?=\d+ cells)", planned.out)[-1].split())

    return line


@pytest.mark.parametrize(
    "words, adapters",
    [
        (["adaptation=random", "task=sr4,deblur"], 3),  # drawn without y, of one image
        (["adaptation=random", "task=sr4,deblur", "seed=0,1"], 6),
        (["adaptation=knn", "task=sr4,deblur"], 6),
        (["adaptation=knn", "sampler.n_steps=1,2"], 3),  # the sampler comes after
        (["adaptation=knn", "k=1,2"], 6),
        (["adaptation=self", "noise_seed=0,1"], 6),
        (["adaptation=self,knn"], 6),
    ],
)
def test_adapters_that_cells_will_share_are_counted_once_before_anything_is_there(
    priced: Callable[..., str], words: list[str], adapters: int
) -> None:
    assert f" images to restore and {adapters} adapters to train" in priced(*words)


def test_shared_adapters_and_what_is_done_once_count_once_in_time_and_disk(
    priced: Callable[..., str],
) -> None:
    # Six images of 10 s and 2 MB, three adapters of 100 s and 30 MB.
    told = priced("adaptation=random", "task=sr4,deblur")
    assert re.search(r"about 6 minutes with one worker .* 102 MB in", told)


def test_the_first_cell_that_needs_a_stage_pays_for_it(
    tiny: list[str], tmp_path: Path, estimated: list[str]
) -> None:
    words = [*tiny, f"results={tmp_path}", "adaptation=random"]
    cells = [
        resolve_cell(compose([*words, f"task={task}", f"seed={seed}"])) for task, seed in SEEDS
    ]
    plans = plan.plan_cells(cells)
    assert [one.adapters for one in plans] == [3, 0, 3]
    assert [one.seconds for one in plans] == [3 * 10 + 3 * 100, 3 * 10, 3 * 10 + 3 * 100]
    assert [one.disk_mb for one in plans] == [3 * 2 + 3 * 30, 3 * 2, 3 * 2 + 3 * 30]
    # The third differs from the first in its seed alone.
    assert [one.seconds_once for one in plans] == [7, 7, 0] and len(estimated) == 2


SEEDS = [("sr4", 0), ("deblur", 0), ("sr4", 1)]
