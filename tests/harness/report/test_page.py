"""What stands in the file, read with Python's own HTML parser and compared with the leaderboard,
numpy and the files.
"""

import base64
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from made_records import ledger_of, made_record
from PIL import Image

import adir.harness.report.assets as assets
import adir.harness.report.page as page
from adir.errors import InputError
from adir.harness.records.ledger import all_records
from adir.harness.records.record import Record
from adir.harness.report.images import ERROR_SCALE, embedded_field, error_colours, error_map
from adir.harness.report.page import write_report
from adir.harness.tables.formats import cells, headings
from adir.harness.tables.leaderboard import load_board
from adir.images import read_pixels

SCRIPT = "<script>alert(1)</script>"
ENDING = "</script><img src=x onerror=alert(1)>"


class Reader(html.parser.HTMLParser):
    """The tags of a page, and the texts of its scripts, table cells and everything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if (tag, dict(attrs).get("class")) == ("span", "below"):
            self.rows[-1][-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
            return
        self.text += data
        if {"td", "th"} & set(self._inside) and "table" in self._inside:
            self.rows[-1][-1] += data


def report(folder: Path, out: Path) -> Reader:
    assert write_report(folder, out, figures=False) == 0
    return Reader(out.read_text())


def data_of(reader: Reader) -> dict[str, Any]:
    return json.loads(reader.scripts[0])


def decoded(source: str) -> np.ndarray:
    assert source.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def reader(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return report(results, tmp_path_factory.mktemp("page") / "report.html")


def test_the_table_has_the_texts_of_the_leaderboard(results: Path, reader: Reader) -> None:
    board = load_board(results)
    shown = [[cell.strip() for cell in row] for row in reader.rows]
    assert [" ".join(text.split()) for text in shown[0]] == headings(board)[1:]
    for row in board.rows:
        assert cells(board, row)[1:] in shown


def test_nothing_from_the_data_becomes_a_tag_or_ends_a_script(reader: Reader) -> None:
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 2  # the data and the program
    assert "b" not in tags and not any("onerror" in attributes for _, attributes in reader.tags)
    assert "<" not in reader.scripts[0]  # neither </script nor <!-- can stand in the data
    assert {scene["id"] for scene in data_of(reader)["scenes"]} == {SCRIPT, "\"&'><b>", "plain"}
    assert ENDING in reader.text  # the error of the failed record, as text


def test_the_page_asks_for_nothing_from_anywhere(results: Path, reader: Reader) -> None:
    for tag, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, target)
    (policy,) = [
        a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy and "http" not in policy
    assert not re.search(
        r"url\(|@import", " ".join(path.read_text() for path in Path(page.HERE).glob("*.css"))
    )


def row_number(data: dict[str, Any], axes: dict[str, Any]) -> str:
    wanted = [axes[name] for name in ("task", "adaptation", "k")]
    (number,) = [
        n
        for n, row in enumerate(data["rows"])
        if [row["axes"][name] for name in ("task", "adaptation", "k")] == wanted
    ]
    return str(number)


def test_images_are_exact_and_each_is_embedded_once(results: Path, reader: Reader) -> None:
    data = data_of(reader)
    assert len(set(data["images"])) == len(data["images"])
    row = row_number(data, {"task": "sr4", "adaptation": "knn", "k": 4})
    (scene,) = [s for s in data["scenes"] if (s["task"], s["id"]) == ("sr4", "plain")]
    for seed in ("0", "1"):
        ledger = ledger_of(results, made_record(mode="knn", k=4, seed=int(seed), backbone="tiny"))
        record = ledger.read("plain")
        assert record is not None
        cell = scene["cells"][row][seed]
        np.testing.assert_array_equal(
            decoded(data["images"][cell["image"]]), read_pixels(ledger.image_path("plain"))
        )
        assert record.y_file is not None
        np.testing.assert_array_equal(
            decoded(data["images"][scene["y"]]), read_pixels(results / record.y_file)
        )
        truth = results / "images" / f"{record.image.sha256}.png"
        np.testing.assert_array_equal(decoded(data["images"][scene["truth"]]), read_pixels(truth))
        assert cell["heat"] is not None


def test_scores_and_distances_are_those_of_the_records(results: Path, reader: Reader) -> None:
    data = data_of(reader)
    records = [record for record in all_records(results) if isinstance(record, Record)]
    assert len(records) == 2 * 3 * 3 * 2 - 1
    for record in records:
        place = (record.axes.task, record.image.id)
        (scene,) = [s for s in data["scenes"] if (s["task"], s["id"]) == place]
        cell = scene["cells"][row_number(data, record.axes.model_dump())][str(record.seed)]
        if record.status == "failed":
            assert cell == {"error": record.error}
            continue
        for text, metric in zip(cell["scores"], data["metrics"], strict=True):
            assert float(text) == pytest.approx(record.value(metric["name"]), rel=5e-4)
        near = [(data["neighbours"][n][0], distance) for n, distance in cell.get("near", [])]
        assert near == [(n.id, f"{n.distance:.3f}") for n in record.neighbours]
        assert all(data["neighbours"][n][1] is not None for n, _ in cell.get("near", []))


def test_missing_and_failed_records_are_said(reader: Reader) -> None:
    data = data_of(reader)
    scene = next(s for s in data["scenes"] if (s["task"], s["id"]) == ("deblur", "\"&'><b>"))
    row = next(
        n
        for n, r in enumerate(data["rows"])
        if (r["axes"]["task"], r["axes"]["k"]) == ("deblur", 4)
    )
    assert set(scene["cells"][str(row)]) == {"0"}  # seed 1 has no record
    assert data["rows"][row]["means"]["psnr"] == [None, None]
    assert "4 of 6 records are done, so means are missing: deblur" in reader.text
    assert "Failed: 1" in reader.text


def test_cost_is_retrieval_training_and_sampling(reader: Reader) -> None:
    # knn with K = 4: 0.5 s of retrieval, 5 s of training, 2 + 4 s of sampling.
    costs = {
        (r["axes"]["task"], r["axes"]["k"]): (r["evaluations"], r["seconds"])
        for r in data_of(reader)["rows"]
    }
    assert costs["sr4", 4] == (5, 11.5) and costs["sr4", None] == (5, 2.5)


def test_held_out_losses_and_errors_of_eps_are_of_the_rows_whose_records_hold_them(
    reader: Reader,
) -> None:
    data = data_of(reader)
    numbers = {(r["axes"]["task"], r["axes"]["k"]): n for n, r in enumerate(data["rows"])}
    held_out = {curve["row"]: curve for curve in data["heldOut"]}
    assert held_out.keys() == {numbers["sr4", 4], numbers["deblur", 4]}
    curve = held_out[numbers["sr4", 4]]
    # 3 images of 2 seeds with falls of -1, 1 and 3 %
    assert (curve["n"], curve["x"], curve["mean"]) == (6, [0, 5, 10, 20], [0, 1, -1, -2])
    assert curve["said"] == "4 of 6 updates accepted, mean alpha 0.33, mean fall of the loss 1.00 %"
    oracle = {curve["row"]: (curve["x"], curve["mean"]) for curve in data["oracle"]}
    assert oracle.keys() == {numbers[task, k] for task in ("sr4", "deblur") for k in (1, 4)}
    assert oracle[numbers["sr4", 1]] == ([10, 100, 400], [1.0, -1.0, -8.0])


def test_a_training_that_records_share_counts_once(make_results: Any, tmp_path: Path) -> None:
    folder = make_results(tasks=("sr4",), seeds=(0,))
    for path in folder.glob("cells/tiny/sr4/knn-k4-*/records/*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"adapter": record["adapter"] | {"key": "0" * 64}}))
    (curve,) = data_of(report(folder, tmp_path / "r.html"))["heldOut"]
    assert curve["n"] == 1


def test_an_error_map_has_the_mean_difference_of_the_channels() -> None:
    x = np.zeros((2, 2, 3), np.uint8)
    x_hat = x.copy()
    x_hat[0, 0] = (0, 30, 0)  # mean 10
    x_hat[1, 1] = 255
    heat = error_map(Image.fromarray(x_hat), Image.fromarray(x))
    assert heat is not None
    levels = [[10, 0], [0, ERROR_SCALE - 1]]
    np.testing.assert_array_equal(np.asarray(heat), levels)
    np.testing.assert_array_equal(
        np.asarray(heat.convert("RGB")), np.array(error_colours())[levels]
    )
    assert error_map(Image.fromarray(x_hat), Image.new("RGB", (3, 2))) is None


def test_without_ground_truth_there_are_no_error_maps(make_results: Any, tmp_path: Path) -> None:
    data = data_of(
        report(make_results(with_truth=False, tasks=("sr4",), seeds=(0,)), tmp_path / "r.html")
    )
    assert all(scene["truth"] is None for scene in data["scenes"])
    assert not any(
        "heat" in cell
        for scene in data["scenes"]
        for row in scene["cells"].values()
        for cell in row.values()
    )


def test_images_beyond_the_budget_are_links_that_lead_to_their_files(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "EXACT_BYTES", 1000)
    monkeypatch.setattr(assets, "PIXELS", 30_000)
    out = tmp_path / "elsewhere" / "report.html"
    reader = report(results, out)
    data = data_of(reader)
    links = [source for source in data["images"] if not source.startswith("data:")]
    assert links
    for link in links:
        assert (out.parent / unquote(link)).is_file()
    assert any(
        "%253Cscript%253E" in link for link in links
    )  # names of files are percent-encoded, so links are twice
    assert "are links into the results folder" in reader.text
    (policy,) = [
        a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and "img-src data: 'self' file:; " in policy


def test_the_page_stays_under_its_limit(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LARGEST_PAGE", 360_000)
    report(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 360_000
    assert any(
        not s.startswith("data:")
        for s in data_of(Reader((tmp_path / "report.html").read_text()))["images"]
    )


def test_a_record_cannot_make_the_report_read_outside_its_folder(
    make_results: Any, tmp_path: Path
) -> None:
    folder = make_results(tasks=("sr4",), seeds=(0,))
    secret = folder.parent / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    record = ledger_of(folder, made_record(backbone="tiny")).record_path("plain")
    for outside in (f"../{secret.name}", str(secret)):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"restored": outside}))
        data = data_of(report(folder, tmp_path / "report.html"))
        scene = next(s for s in data["scenes"] if s["id"] == "plain")
        assert scene["cells"]["0"]["0"]["image"] is None
        assert not any("secret" in source for source in data["images"])


def test_the_same_results_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path / "a.html")
    report(results, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_what_cannot_be_reported_is_said_in_one_line(results: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such results folder"):
        write_report(tmp_path / "nothing", None, figures=False)
    with pytest.raises(InputError, match="no records found"):
        write_report(tmp_path, None, figures=False)
    with pytest.raises(InputError, match="is a folder; name the HTML file"):
        write_report(results, tmp_path, figures=False)


def test_embedded_corpus_fields_are_built_again_by_their_id() -> None:
    field = embedded_field("chelsea-s1-y080-x280", None)
    assert field is not None and field.size == (128, 128)
    assert embedded_field("chelsea-s1-y900-x280", None) is None  # beyond the photograph
    assert embedded_field("flamingo/image_0023.jpg", None) is None
