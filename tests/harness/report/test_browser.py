"""The report in a headless Chromium: what a hand, a finger and a keyboard do to it.

One browser for the whole file.

The browser is the system's (Debian: `apt-get install chromium`), driven by playwright, which
downloads none.
"""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import ledger_of, made_record
from PIL import Image

import adir.harness.report.assets as assets
from adir.harness.report.page import write_report

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install 'adir[dev]'"
)

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
if CHROMIUM is None:
    pytest.skip(
        "needs a Chromium on this machine: apt-get install chromium", allow_module_level=True
    )

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
)
ARGUMENTS += " --disable-component-update --disable-sync"
TIMEOUT = 20_000  # ms: for machines with much else to do


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS.split(), timeout=60_000
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(results, out, figures=False)
    return out


class Opened:
    """A page of the report, and everything it said or asked for."""

    def __init__(self, browser: Any, report: Path, **context: Any) -> None:
        self.context = browser.new_context(
            **({"viewport": {"width": 1200, "height": 900}} | context)
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())

    @property
    def at(self) -> int:
        return int(self.page.locator("#handle").get_attribute("aria-valuenow"))

    def frame(self) -> dict[str, float]:
        self.page.locator("#frame").scroll_into_view_if_needed()
        return self.page.locator("#frame").bounding_box()

    def loaded(self) -> None:
        """Wait until every image that is shown is decoded."""
        self.page.evaluate(
            "() => Promise.all([...document.querySelectorAll('img[src]')].filter((i) => "
            "!i.hidden).map((i) => i.decode()))"
        )

    def choose(self, image: str, task: str = "sr4") -> None:
        self.page.select_option("#scene-task", task)
        self.page.select_option("#scene", label=image)


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    """A fresh page; afterwards nothing was said on the console and nothing asked of a network."""
    one = Opened(browser, report)
    yield one
    one.context.close()
    assert one.said == []
    assert [url for url in one.asked if not url.startswith(("file:", "data:"))] == []


def pixels(screenshot: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(screenshot)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_border_follows_the_mouse_and_parts_the_two_images(opened: Opened) -> None:
    opened.choose("plain")
    opened.page.select_option("#left", label="ground truth")
    opened.page.select_option("#right", label="error of knn k=4 full")
    box = opened.frame()
    middle = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + box["width"] * 0.25, middle, steps=4)
    opened.page.mouse.up()
    assert opened.at == 25
    opened.page.mouse.move(
        box["x"] + box["width"] * 0.9, middle
    )  # after the button went up nothing follows
    assert opened.at == 25
    opened.loaded()
    shown = pixels(opened.page.locator("#frame").screenshot())
    left, right = (
        opened.page.evaluate(
            f"data.images[choices(scene()).find((c) => c.key === state.{s}).image]"
        )
        for s in ("left", "right")
    )
    sides = [
        np.asarray(
            Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))).convert("RGB")
        ).astype(int)
        for s in (left, right)
    ]
    for fraction, side in ((0.1, sides[0]), (0.22, sides[0]), (0.29, sides[1]), (0.95, sides[1])):
        # A 32-pixel image is shown as squares of a sixteenth of an inch and more: their middles
        # have its very colours.
        column = int(fraction * 32)
        x, y = round((column + 0.5) / 32 * shown.shape[1]), round(4.5 / 32 * shown.shape[0])
        np.testing.assert_allclose(shown[y, x], side[4, column], atol=2)


def test_the_border_follows_a_finger(browser: Any, report: Path) -> None:
    one = Opened(
        browser, report, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    box = one.frame()
    middle = box["y"] + box["height"] / 2
    finger = one.context.new_cdp_session(one.page)
    for kind, x in (
        ("touchStart", 0.5),
        ("touchMove", 0.6),
        ("touchMove", 0.7),
        ("touchMove", 0.8),
        ("touchEnd", None),
    ):
        points = [] if x is None else [{"x": box["x"] + box["width"] * x, "y": middle}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert one.at == pytest.approx(80, abs=1)
    assert one.said == []
    one.context.close()


def test_the_border_follows_the_keyboard(opened: Opened) -> None:
    handle = opened.page.locator("#handle")
    assert handle.get_attribute("role") == "slider"
    handle.focus()
    steps = [
        "ArrowRight",
        "ArrowRight",
        "ArrowLeft",
        "Shift+ArrowRight",
        "PageDown",
        "Home",
        "ArrowLeft",
        "End",
    ]
    places = []
    for key in steps:
        opened.page.keyboard.press(key)
        places.append(opened.at)
    assert places == [51, 52, 51, 61, 51, 0, 0, 100]
    assert handle.get_attribute("aria-valuetext") == "100 % none, the rest knn k=4 full"


def test_columns_sort_within_their_task_and_come_back(opened: Opened) -> None:
    def column() -> list[list[str]]:
        return opened.page.evaluate(
            "[...document.querySelectorAll('#board tbody')].map((b) => "
            "[...b.rows].slice(1).map((r) => r.dataset.row))"
        )

    before = column()
    values = opened.page.evaluate("data.rows.map((row) => row.means.psnr[0])")
    header = opened.page.locator("#board thead th", has_text="psnr")
    button = header.locator("button")
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    for body, unsorted in zip(column(), before, strict=True):
        there = [values[int(row)] for row in body]
        assert sorted(body) == sorted(unsorted)
        present = [value for value in there if value is not None]
        assert (
            present == sorted(present, reverse=True) and there[: len(present)] == present
        )  # missing ones last
    button.focus()
    opened.page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    button.click()
    assert column() == before


def test_the_filter_keeps_rows_with_all_its_words(opened: Opened) -> None:
    shown = (
        "[...document.querySelectorAll('#board tbody tr[data-row]')].filter((r) => "
        "r.offsetParent).length"
    )
    assert opened.page.evaluate(shown) == 6
    opened.page.fill("#filter", "KNN sr4")
    assert opened.page.evaluate(shown) == 2
    assert opened.page.locator("#filter-count").text_content() == "2 of 6 rows"
    opened.page.fill("#filter", "")
    opened.page.select_option("#task-filter", "deblur")
    assert opened.page.evaluate(shown) == 3


def test_dark_and_light(browser: Any, report: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    one = Opened(browser, report, color_scheme="dark")
    dark = one.page.evaluate(paper)
    one.page.click("#theme")
    light = one.page.evaluate(paper)
    red = {
        name: int(re.findall(r"\d+", colour)[0])
        for name, colour in (("dark", dark), ("light", light))
    }
    assert red["dark"] < 40 and red["light"] > 220
    one.page.reload()
    assert one.page.evaluate(paper) == light  # the choice is kept
    assert one.said == []
    one.context.close()


def test_names_from_the_data_stay_text(opened: Opened) -> None:
    for name in ("<script>alert(1)</script>", "\"&'><b>"):
        opened.choose(name, "deblur")
        assert name in opened.page.locator("#scene-title").text_content()
    opened.choose("plain", "deblur")
    opened.page.select_option("#seed", "1")
    assert "</script><img src=x onerror=alert(1)>" in opened.page.locator("#scores").text_content()
    assert "failed: FloatingPointError" in opened.page.locator("#tiles").text_content()
    opened.choose("\"&'><b>", "deblur")
    assert "missing" in opened.page.locator("#scores").text_content()
    assert opened.page.evaluate("document.querySelectorAll('script').length") == 2
    assert (
        opened.page.evaluate("document.querySelectorAll('main b').length")
        == opened.page.locator("#tiles b, #board b").count()
    )


def test_neighbours_are_shown_with_their_distances(opened: Opened) -> None:
    opened.choose("plain")
    strip = opened.page.locator("#neighbours .strip").first
    assert (
        strip.locator("h4").text_content()
        == "knn k=4 full: 4, nearest first, with the distance to y"
    )
    assert strip.locator("li").all_text_contents() == ["0.500", "0.643", "0.786", "0.929"]
    opened.loaded()
    assert opened.page.evaluate(
        "[...document.querySelectorAll('#neighbours img')].every((i) => i.naturalWidth === 32)"
    )
    assert "<script>alert(1)</script>" in opened.page.locator("#excluded").text_content()


def test_charts_draw_what_is_there(opened: Opened) -> None:
    opened.page.select_option("#chart-task", "sr4")
    for name in ("scatter", "sweep", "loss", "held-out", "oracle", "cost"):
        assert opened.page.locator(f"#{name} .plot svg").is_visible(), name
    # 3 rows x 3 images as small points, 3 means
    clouds = opened.page.locator("#scatter path.cloud").evaluate_all(
        "(paths) => paths.map((p) => p.getAttribute('d').split('M').length - 1)"
    )
    assert clouds == [3, 3, 3] and opened.page.locator("#scatter .mark").count() == 3
    assert (
        opened.page.locator("#loss path.series").count() == 2
        and opened.page.locator("#cost .mark").count() == 3
    )
    # Lines of knn with K of 1 and 4, of the latter alone a held-out loss; a mark at each iteration,
    # and at each t.
    assert (
        opened.page.locator("#held-out path.series").count() == 1
        and opened.page.locator("#oracle .mark").count() == 6
    )
    assert opened.page.locator("#held-out .plot .mark").count() == 4
    said = opened.page.locator("#held-out li").all_text_contents()
    assert said == [
        "knn k=4 full: 4 of 6 updates accepted, mean alpha 0.33, mean fall of the loss 1.00 %"
    ]
    opened.page.locator("#chart-legend button").first.click()
    assert opened.page.locator("#scatter .mark").count() == 2
    opened.page.select_option("#chart-task", "deblur")
    assert not opened.page.locator("#sweep").is_visible()  # the mean at K = 4 is missing
    assert "Number of neighbours: no row" in opened.page.locator("#chart-lacks").text_content()


def test_ticks_are_multiples_of_their_step_and_zero_is_one(opened: Opened) -> None:
    assert opened.page.evaluate("niceTicks(-0.016, 0.0009, 5)") == [-0.015, -0.01, -0.005, 0]
    assert opened.page.evaluate("niceTicks(0.7, 2.1, 5)") == [1, 1.5, 2]


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(
    browser: Any, report: Path, width: int
) -> None:
    one = Opened(
        browser,
        report,
        viewport={"width": width, "height": 740},
        is_mobile=width < 500,
        has_touch=True,
    )
    assert one.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    sizes = one.page.evaluate(
        "[...document.querySelectorAll('p, td, th, dd, label')].filter((e) => e.offsetParent)"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11
    one.context.close()


@pytest.fixture(scope="module")
def several(several_samplers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "report.html"
    write_report(several_samplers, out, figures=False)
    return out


def test_it_opens_on_what_there_is_and_not_on_a_task_that_never_ran(
    browser: Any, several: Path
) -> None:
    one = Opened(browser, several)
    assert one.page.evaluate("[...sceneTask.options].map((o) => o.value)") == ["deblur", "sr4"]
    assert [one.page.input_value(f"#{name}") for name in ("scene-task", "chart-task")] == [
        "sr4",
        "sr4",
    ]
    assert (
        one.page.locator("#right-image").is_visible()
        and one.page.locator("#scatter svg").is_visible()
    )
    one.page.select_option("#scene-task", "deblur")
    assert "missing" in one.page.locator("#scores").text_content()
    assert one.said == []
    one.context.close()


def test_rows_differ_in_their_marks_and_full_and_lora_in_their_lines(
    browser: Any, several: Path
) -> None:
    one = Opened(browser, several)
    marks = one.page.evaluate(
        "[...document.querySelectorAll('#board tr[data-row]')].filter((r) => "
        "r.closest('tbody').dataset.task === 'sr4')"
        ".map((r) => r.querySelector('svg.icon').outerHTML)"
    )
    assert len(marks) == len(set(marks)) == 8
    legend = one.page.evaluate(
        "[...document.querySelectorAll('#chart-legend svg')].map((i) => i.outerHTML)"
    )
    assert legend == marks
    lines = one.page.locator("#sweep path.series").evaluate_all(
        "(p) => p.map((e) => getComputedStyle(e).strokeDasharray)"
    )
    assert len(lines) == 2 and len(set(lines)) == 2
    one.context.close()


def test_the_loss_chart_says_that_adapters_are_there_without_losses(
    browser: Any, several: Path
) -> None:
    one = Opened(browser, several)
    lacks = one.page.locator("#chart-lacks").text_content()
    assert "adapters of this task are among the results, and none of them holds its losses" in lacks
    one.page.select_option("#chart-task", "deblur")
    lacks = one.page.locator("#chart-lacks").text_content()
    assert "Adaptation loss: no row of this task was adapted" in lacks
    assert (
        "Held-out loss: no record of this task holds one" in lacks
        and "Error of eps on the ground truth by t: no" in lacks
    )
    assert (
        not one.page.locator("#held-out").is_visible()
        and one.page.locator("#held-out li").count() == 0
    )
    one.context.close()


def test_on_a_phone_scores_stand_beside_the_names_and_a_shadow_says_that_there_are_more(
    browser: Any, several: Path
) -> None:
    one = Opened(
        browser, several, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    table = one.page.locator("#leaderboard .scroll")
    row = table.locator("tr[data-row]", has=one.page.locator("[data-label='pseudo_inverse none']"))
    name, first = row.locator("th.name"), row.locator("td.number").first
    names = name.bounding_box()
    assert names["x"] >= 0 and names["x"] + names["width"] <= first.bounding_box()["x"]
    assert (
        first.bounding_box()["x"] + first.bounding_box()["width"] <= 390
        and first.text_content()[:1] == "2"
    )
    assert not row.locator("td.lead.text").first.is_visible()  # the sampler is in the name
    heading = table.locator("thead th.name button")
    assert not heading.locator("span").is_visible()  # mode
    assert heading.evaluate("(e) => getComputedStyle(e, '::before').content") == '"row"'

    def right_edge() -> np.ndarray:
        group = table.locator(
            "tr.group"
        ).first.bounding_box()  # a line without scores, whose middle is blank
        box = table.bounding_box()
        clip = {
            "x": box["x"] + box["width"] - 4,
            "y": group["y"] + group["height"] / 2,
            "width": 4,
            "height": 2,
        }
        return pixels(one.page.screenshot(clip=clip))

    table.scroll_into_view_if_needed()
    before = right_edge()
    table.evaluate("(e) => { e.scrollLeft = e.scrollWidth; }")
    after = right_edge()
    assert name.bounding_box()["x"] == names["x"]  # it stays where it is
    assert after.mean() > 240 > 235 > before.mean()
    assert one.said == []
    one.context.close()


def test_texts_start_at_the_left_and_numbers_end_at_the_right(browser: Any, several: Path) -> None:
    one = Opened(browser, several)
    for heading, side in (
        ("sampler", "left"),
        ("adapter", "left"),
        ("K", "right"),
        ("psnr", "right"),
    ):
        header = one.page.locator("#board thead th", has_text=heading).first
        assert header.evaluate("(e) => getComputedStyle(e).textAlign") == side, heading
    one.context.close()


def test_it_prints_in_dark_ink_on_white_with_charts_and_images(browser: Any, report: Path) -> None:
    one = Opened(browser, report, color_scheme="dark")
    pdf = one.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 6
    one.page.emulate_media(media="print", color_scheme="dark")
    assert (
        one.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert one.page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert (
        not one.page.locator("#theme").is_visible()
        and one.page.locator("#tiles img").first.is_visible()
    )
    assert one.said == []
    one.context.close()


def test_linked_images_show_and_a_lost_one_is_said(
    browser: Any, make_results: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "EXACT_BYTES", 100)
    monkeypatch.setattr(assets, "PIXELS", 1)
    folder = make_results(tasks=("sr4",), seeds=(0,))
    write_report(folder, None, figures=False)
    ledger_of(folder, made_record(mode="knn", k=4, backbone="tiny")).image_path("plain").unlink()
    one = Opened(browser, folder / "report.html")
    one.choose("<script>alert(1)</script>")
    one.loaded()
    assert one.page.evaluate("document.getElementById('right-image').naturalWidth") == 32
    assert one.page.evaluate("document.getElementById('right-image').src").startswith("file:")
    one.choose("plain")
    one.page.locator("#right-lack").wait_for()  # until it is visible
    assert "its file is not where it was" in one.page.locator("#right-lack").text_content()
    assert all(url.startswith(("file:", "data:")) for url in one.asked)
    one.context.close()
