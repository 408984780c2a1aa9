"""What a plan counts: stages that cells share once, what is done once once."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from adir.harness.planning import plan
from adir.harness.planning.cost import Cost
from adir.harness.planning.plan import CellPlan, Totals

PRICE = Cost({"measure": 1.0, "adapt": 100.0, "sample": 9.0}, 500.0, 2.0, 30.0, {"embeddings": 7.0})


@pytest.fixture
def priced(adir: Callable, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The last line of a plan in a fresh folder, where every cell has the same price."""
    monkeypatch.setattr(plan, "estimate", lambda cell: PRICE)

    def line(*words: str) -> str:
        planned = adir("plan", "-m", *tiny, f"results={tmp_path}", *words)
        assert planned.status == 0, planned.err
        return " ".join(re.split(r"\n(?=\d+ cells)", planned.out)[-1].split())

    return line


@pytest.mark.parametrize(
    "words, adapters",
    [
        (["adaptation=random", "task=sr4,deblur"], 3),  # drawn without y, of one picture
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
    assert f" pictures and {adapters} adapters to do" in priced(*words)


def test_shared_adapters_and_what_is_done_once_count_once_in_time_and_disk(priced: Callable[..., str]) -> None:
    # Six pictures of 10 s and 2 MB, three adapters of 100 s and 30 MB.
    told = priced("adaptation=random", "task=sr4,deblur")
    assert re.search(r"about 6 minutes of one worker .* 102 MB in", told)


def test_the_first_cell_that_needs_a_stage_pays_for_it() -> None:
    totals = Totals()
    one, other = (CellPlan(None, to_do=2, new_adapters={"a", "b"}, cost=PRICE) for _ in range(2))  # type: ignore[arg-type]
    assert totals.add(one) == (2 * 10 + 2 * 100, 2 * 2 + 2 * 30)
    assert totals.add(other) == (2 * 10, 2 * 2)
    assert (totals.seconds, totals.disk_mb, totals.once) == (240, 68, {"embeddings": 7.0})
    assert Totals().add(CellPlan(None)) == (0, 0)  # type: ignore[arg-type]
