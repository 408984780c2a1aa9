"""Launchers change no result."""

from pathlib import Path

import pytest

from adir.files import sha256_of_file


@pytest.mark.slow
def test_two_processes_give_the_table_and_the_images_of_one(
    adir, tiny: list[str], tmp_path: Path
) -> None:
    found = {}
    for launcher in ("basic", "two_processes"):
        results = tmp_path / launcher
        grid = [
            "run",
            "-m",
            *tiny,
            "task=sr4,deblur",
            "adaptation=none,random",
            f"hydra/launcher={launcher}",
        ]
        assert adir(*grid, f"results={results}").status == 0
        assert adir("leaderboard", results).status == 0
        files = [*results.glob("cells/**/*.png"), results / "leaderboard.csv"]
        found[launcher] = {str(path.relative_to(results)): sha256_of_file(path) for path in files}
    assert len(found["basic"]) == 2 * 2 * 3 + 1
    assert found["two_processes"] == found["basic"]
