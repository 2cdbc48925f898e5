"""Text and JSON inside a page, whatever they hold."""

import html
import json

import pytest

from engine.screen.report.markup import MAX_TEXT, as_json, moment, named, section, shortened, table, text

HOSTILE = "</script><script>alert(1)</script><!--\u2028\u2029&amp;\"'"


def test_json_holds_neither_a_tag_nor_an_odd_line_end():
    plain = as_json({HOSTILE: [HOSTILE, 1.5]})
    assert json.loads(plain) == {HOSTILE: [HOSTILE, 1.5]}
    assert plain.isascii() and not set("<>&") & set(plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_have_is_an_error(value):
    with pytest.raises(ValueError):
        as_json(value)


def test_long_names_lose_their_middle():
    names = [f"/data/corpora/2026/{name}/all" for name in ("encyclopedia-of-everything", "questions-and-answers")]
    short = [shortened(name, 24) for name in names]
    assert len(set(short)) == 2 and all(len(one) == 24 and "…" in one for one in short)
    assert all(one.startswith("/data") and one.endswith("/all") for one in short)
    assert shortened("topics", 24) == "topics"


def test_a_shortened_name_has_all_of_it_as_title():
    assert named("topics") == "topics"
    long = "<b>" + "x" * 50
    assert f'title="{html.escape(long)}"' in named(long) and "<b>" not in named(long)


def test_a_long_text_is_cut():
    assert text("<i>") == "&lt;i&gt;"
    assert len(text("x" * 10 * MAX_TEXT)) == MAX_TEXT + 2


def test_empty_parts_are_left_out():
    assert table([("a", ""), ("b", "")]) == section("key", "Title", "") == ""
    assert table([("a", "1"), ("b", "")]).count("<tr>") == 1
    assert section("key", "Title", "x").startswith('<section id="key"><h2>Title</h2>')


@pytest.mark.parametrize(("seconds", "words"), [(0, "1970-01-01 00:00"), (None, "?"), ("x", "?"), (1e300, "?")])
def test_moments_are_in_utc(seconds, words):
    assert moment(seconds) == words
