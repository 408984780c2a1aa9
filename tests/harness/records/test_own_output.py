"""Results are no data: whatever reads folders leaves marked ones out, and refuses one that is
named.
"""

import shutil
from pathlib import Path

import pytest

from adir.data.corpus import folder_corpus
from adir.data.div2k import Div2kSquares
from adir.data.edits import EditSet
from adir.data.sources.tables import ParquetSource
from adir.data.sources.tars import TarSource
from adir.errors import InputError
from adir.harness.records.layout import Layout


@pytest.mark.parametrize("results", ["runs", "results/2024", "photos/deep/er"])
def test_results_among_the_test_images_are_not_taken_as_test_images(
    adir, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: str
) -> None:
    shutil.copytree(photographs, tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    for task in ("sr4", "deblur"):
        done = adir(
            "run",
            "data=folder",
            "data.path=.",
            "sampler=bicubic",
            "scoring.metrics=[psnr]",
            f"task={task}",
            f"results={results}",
        )
        assert done.status == 0 and "3 images done, 0 already done, 0 failed" in done.out + done.err
    assert len(folder_corpus(".")) == 3
    refused = adir("run", "data=folder", f"data.path={results}", "sampler=bicubic")
    assert (
        refused.status == 2
        and f"{results}: holds results of adir" in refused.err
        and refused.err.count("\n") == 1
    )


@pytest.mark.parametrize("read", [folder_corpus, TarSource, ParquetSource, EditSet, Div2kSquares])
def test_no_reader_of_folders_takes_a_results_folder(read, tmp_path: Path) -> None:
    Layout(tmp_path).mark()
    with pytest.raises(InputError, match="holds results of adir"):
        read(tmp_path)
