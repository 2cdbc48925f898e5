"""The report in a real browser: Chromium, without a screen. Left out where there is none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engine.screen.report import library, page_of_events
from tests.helpers.browser import chromium, open_page
from tests.helpers.lineage import lineage

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = chromium()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u2028$$x$$"
NAMES = [f"/data/{HOSTILE}/one", f"/data/{HOSTILE}/two"]


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Opens the page of the lineage whose sources and texts are hostile."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page_of_events(lineage(NAMES, HOSTILE)), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:

        @contextmanager
        def opened(width: int = 1280, dark: bool = False, address: str = path.as_uri(), **more: Any) -> Iterator[Any]:
            with open_page(playwright, BROWSER, address, width=width, height=900, dark=dark, **more) as page:
                yield page
                assert [text for kind, text in page.said if kind in ("error", "warning")] == []
                assert page.asked == [address]

        yield opened


def x_range(page: Any) -> tuple[float, float]:
    return tuple(page.evaluate("[report.range.start, report.range.end]"))


def box(page: Any, key: str) -> dict[str, float]:
    page.locator(f"#chart-{key}").scroll_into_view_if_needed()
    return page.locator(f"#chart-{key} .plot").bounding_box()


def test_zoom_hover_and_log_axes_work(show):
    with show() as page:
        whole = x_range(page)
        area = box(page, "loss")
        middle = area["y"] + area["height"] / 2

        # Pointing at a place reads all curves there; leaving it, their ends.
        output = page.locator("#chart-loss .legend output").first
        at_the_end = output.inner_text()
        page.mouse.move(area["x"] + 0.3 * area["width"], middle)
        page.wait_for_function("document.documentElement.dataset.at > 0")
        assert output.inner_text() != at_the_end
        tokens = float(page.evaluate("document.documentElement.dataset.at"))
        assert 0.15 < tokens / whole[1] < 0.4
        page.mouse.move(5, 5)
        page.wait_for_function("document.documentElement.dataset.at === ''")
        assert output.inner_text() == at_the_end

        # Dragging zooms, in all charts; a double click shows all again.
        page.mouse.move(area["x"] + 0.4 * area["width"], middle)
        page.mouse.down()
        page.mouse.move(area["x"] + 0.6 * area["width"], middle + 2, steps=5)
        page.mouse.up()
        page.wait_for_function(f"report.range.start > {0.2 * whole[1]}")
        start, end = x_range(page)
        assert 0.3 * whole[1] < start < end < 0.7 * whole[1]
        assert page.evaluate("report.plots.every(one => one.made.x_range === report.range)")
        page.mouse.dblclick(area["x"] + 0.5 * area["width"], middle)
        page.wait_for_function(f"report.range.end === {whole[1]}")
        assert x_range(page) == whole

        # Log axes, of a chart's figures and of all tokens.
        kinds = "report.plots.map(one => [one.made.x_scale.type, one.made.y_scale.type])"
        assert page.evaluate(kinds)[0] == ["LinearScale", "LinearScale"]
        page.locator("#chart-loss button.log").click()
        page.wait_for_selector("html[data-drawn='2']")
        assert page.evaluate(kinds)[0] == ["LinearScale", "LogScale"]
        page.locator("#log-x").click()
        page.wait_for_selector("html[data-drawn='3']")
        assert page.evaluate(kinds)[0] == ["LogScale", "LogScale"] and x_range(page)[0] > 0

        # A name in the legend hides its curve.
        page.locator("#chart-loss .legend button").first.click()
        assert page.evaluate("report.plots[0].drawn[0].map(one => one.visible)") == [False]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_is_readable_at_any_width(show, width, dark):
    with show(width=width, dark=dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for key in ("curves", "samples", "passage", "sources", "preset", "events"):
            assert page.locator(f"section#{key}").is_visible()
        assert page.locator(".chart .plot canvas").count() >= 10
        assert page.locator(".still").first.is_hidden()
        background, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        assert (brightness(background) < brightness(ink)) == dark
        sizes = page.evaluate(
            "[...document.querySelectorAll('p, td, li, button')].map(e => getComputedStyle(e).fontSize)"
        )
        assert min(float(size.removesuffix("px")) for size in sizes) >= 11


def brightness(colour: str) -> int:
    return sum(map(int, colour.partition("(")[2].rstrip(")").split(",")[:3]))


def test_hostile_text_is_shown_as_text(show):
    with show() as page:
        assert page.locator("img").count() == 0 and page.locator("body script").count() == 3
        assert HOSTILE.partition("\u2028")[0] in page.locator("#samples").inner_text()
        titles = page.locator("#chart-sources .name span").evaluate_all("all => all.map(one => one.title)")
        assert titles == NAMES
        shown = page.locator("#chart-sources .name span").all_inner_texts()
        assert len(set(shown)) == 2 and all("…" in name for name in shown)
        page.locator(".passage span").nth(3).hover()
        said = page.locator("#foreseen").inner_text()
        assert HOSTILE.partition("\u2028")[0] in said and "expected 2.30" in said and page.locator("img").count() == 0


def test_paper_has_the_still_curves_in_dark_ink(show):
    with show(dark=True) as page:
        page.emulate_media(media="print")
        assert page.locator(".still").first.is_visible() and page.locator(".plot").first.is_hidden()
        assert page.locator("nav").is_hidden()
        background, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        assert brightness(background) > brightness(ink)
        assert page.pdf().startswith(b"%PDF")


def test_the_colours_follow_the_screen(show):
    with show() as page:
        line = "report.plots[0].drawn[0][0].glyph.line_color.value"
        light = page.evaluate(line)
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("html[data-drawn='2']")
        assert page.evaluate(line) != light


def test_without_the_library_it_still_reads(show, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "javascript", lambda: None)
    path = tmp_path / "report.html"
    path.write_text(page_of_events(lineage()), encoding="utf-8")
    with show(width=390, address=path.as_uri()) as page:
        assert page.locator(".still").first.is_visible() and page.locator("#still").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
