"""Curves as SVG: where known points stand, and that no text or figure breaks the drawing."""

import xml.etree.ElementTree as ElementTree

import pytest

from engine.screen.report.stills import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, drawing, figure, ticks


def draw(curves: dict, marks: list | None = None, last: float = 100.0) -> ElementTree.Element:
    return ElementTree.fromstring(drawing("Loss", curves, marks or [], last))


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split(","))) for point in element.attrib["points"].split()]


def test_points_stand_where_their_figures_are():
    (line,) = draw({"loss": [(0, 3.0), (50, 2.0), (100, 1.0)]}).findall("polyline")
    across, down = zip(*points(line), strict=True)
    assert across == (LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    assert down[1] == middle and TOP < down[0] < middle < down[2] < HEIGHT - BOTTOM
    assert down[0] - TOP == pytest.approx(HEIGHT - BOTTOM - down[2], abs=0.2)


def test_axes_have_ticks():
    labels = [one.text for one in draw({"loss": [(0, 3.0), (100, 1.0)]}).findall("text")]
    assert {"1", "2", "3"} <= set(labels) and {"0", "50", "100"} <= set(labels)


def test_a_single_point_is_a_dot_and_a_curve_without_points_is_none():
    svg = draw({"a": [(50, 2.0)], "b": [], "c": [(0, 1.0), (1, 2.0)]})
    (dot,), (line,) = svg.findall("circle"), svg.findall("polyline")
    assert float(dot.attrib["cx"]) == (LEFT + WIDTH - RIGHT) / 2
    assert "--curve-0" in dot.attrib["style"] and "--curve-2" in line.attrib["style"]
    assert drawing("", {}, [], 100) == drawing("", {"a": []}, [], 100) == ""


def test_marks_stand_across_and_say_what_they_are():
    svg = draw({"a": [(0, 1.0)]}, [(50, "run", "run <2>"), (500, "spike", "beyond")])
    (mark,) = [one for one in svg.findall("path") if "mark" in one.attrib["class"]]
    assert mark.attrib["d"].startswith(f"M{(LEFT + WIDTH - RIGHT) / 2:.1f} ") and mark.find("title").text == "run <2>"


def test_names_are_no_markup():
    hostile = "<script>alert('x')</script>"
    svg = draw({hostile: [(0, 1.0), (1, 2.0)]})
    assert not svg.findall(".//script") and svg.find("polyline/title").text == hostile


@pytest.mark.parametrize("flat", [0.0, 5.0, -3.0, 1e-9, 1e15])
def test_a_flat_curve_is_drawn_within_the_axes(flat):
    (line,) = draw({"a": [(0, flat), (100, flat)]}).findall("polyline")
    assert all(TOP < y < HEIGHT - BOTTOM for _, y in points(line))


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (2.2, 8.1, [4, 6, 8]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5]),
    ],
)
def test_ticks_are_round(low, high, found):
    assert ticks(low, high) == found


@pytest.mark.parametrize(
    ("value", "percent", "words"),
    [
        (0, False, "0"),
        (2.71828, False, "2.718"),
        (2.5e-4, False, "2.5e-4"),
        (12_345, False, "12.3k"),
        (-22_000, False, "-22.0k"),
        (0.1234, True, "12.3%"),
        (1, True, "100%"),
    ],
)
def test_figures_are_short(value, percent, words):
    assert figure(value, percent) == words
