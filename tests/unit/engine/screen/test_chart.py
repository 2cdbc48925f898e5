"""Curves as SVG: where known points stand, and that no text or figure breaks the drawing."""

import xml.etree.ElementTree as ElementTree

from engine.screen.chart import COLOURS, HEIGHT, MARGIN, MAX_POINTS, WIDTH, chart


def drawing(curves: dict) -> ElementTree.Element:
    return ElementTree.fromstring(chart(curves))


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split(","))) for point in element.attrib["points"].split()]


def test_points_stand_where_their_figures_are():
    svg = drawing({"loss": [(0, 3.0), (50_000, 2.0), (100_000, 1.0)]})
    (line,) = svg.findall("polyline")
    top, bottom = 24.0, HEIGHT - 24.0
    assert points(line) == [(MARGIN, top), (WIDTH / 2, (top + bottom) / 2), (WIDTH - MARGIN, bottom)]
    assert [text.text for text in svg.findall("text")] == ["3", "1", "100k tokens", "loss 1"]


def test_curves_share_their_axes_and_have_their_colours():
    svg = drawing({"a": [(0, 4.0), (10, 2.0)], "b": [], "c": [(20, 0.0)]})
    a, c = svg.findall("polyline")
    assert points(a) == [(MARGIN, 24.0), (WIDTH / 2, 100.0)] and points(c) == [(WIDTH - MARGIN, 176.0)]
    assert [line.attrib["stroke"] for line in (a, c)] == list(COLOURS[:2])


def test_a_long_curve_is_averaged():
    (line,) = drawing({"loss": [(x, float(x % 2)) for x in range(4 * MAX_POINTS)]}).findall("polyline")
    drawn = points(line)
    assert len(drawn) == MAX_POINTS and len({y for _, y in drawn}) == 1, "the mean of two of each"


def test_one_flat_point_at_zero_is_drawn():
    (line,) = drawing({"loss": [(0, 0.0)]}).findall("polyline")
    assert points(line) == [(MARGIN, HEIGHT - 24.0)]


def test_names_are_cut_and_are_no_markup():
    svg = drawing({"<script>alert('x')</script>": [(0, 1.0)]})
    assert not svg.findall(".//script")
    assert svg.findall("text")[-1].text == "<script>alert('x') 1"


def test_nothing_is_said_in_words():
    assert chart({}) == chart({"loss": []}) == '<p class="small">Nothing yet.</p>'
