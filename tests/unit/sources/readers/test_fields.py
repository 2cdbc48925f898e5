"""Templates: what they render, and that they are data and never code."""

import pytest

from sources.readers.fields import FieldError, compile_template

QA = "Q: {question}\nA: {answer}"


def test_render_by_replacement():
    template = compile_template(QA, ["question", "answer"])
    row = {"question": "What is {answer}?", "answer": "{0.__class__}"}
    assert template.render(row) == "Q: What is {answer}?\nA: {0.__class__}"


def test_fields_without_format_are_joined_by_newlines():
    assert compile_template(None, ["title", "text"]).render({"title": "T", "text": "x"}) == "T\nx"


def test_format_without_fields_takes_its_own():
    assert compile_template("{b} {a}", None).columns == ["b", "a"]


def test_escaped_braces():
    assert compile_template("{{{code}}}", None).render({"code": "x = 1"}) == "{x = 1}"


@pytest.mark.parametrize("value", [None, "", "  \n", [], {}, {"text": "x"}])
def test_rows_without_the_field_have_no_text(value):
    assert compile_template("{a}", None).render({"a": value}) is None
    assert compile_template("{a}", None).render({}) is None


@pytest.mark.parametrize(
    "format",
    [
        "{a.__class__}",
        "{a.__init__.__globals__}",
        "{a[0]}",
        "{a!r}",
        "{a:>9999999999}",
        "{a:{b}}",
        "{}",
        "{0}",
        "{",
        "}",
        "no placeholder",
        "",
    ],
)
def test_anything_but_bare_names_is_refused(format):
    with pytest.raises(FieldError):
        compile_template(format, None)
    with pytest.raises(FieldError):
        compile_template(format, ["a"])


def test_dotted_paths_reach_nested_columns_and_lists():
    row = {"answers": {"text": ["", "Paris", "Lyon"], "start": [1]}, "turns": [{"say": None}, {"say": "hello"}], "n": 3}
    template = compile_template("{answer} {say} {n}", {"answer": "answers.text", "say": "turns.say", "n": "n"})
    assert template.columns == ["answers", "turns", "n"]
    assert template.render(row) == "Paris hello 3"
    assert compile_template("{answers.text}", ["answers.text"]).render(row) == "Paris"


def test_a_dotted_path_never_leaves_the_row():
    template = compile_template(None, ["a.__class__.__name__"])
    assert template.render({"a": "text"}) is None


def test_a_flat_column_may_hold_a_dot():
    template, _ = compile_template(None, ["answers.text"]).bind({"answers.text": None}, "the dataset")
    assert template.render({"answers.text": "x"}) == "x"


def test_missing_columns_are_named_with_the_nearest():
    with pytest.raises(FieldError, match=r"data has no column 'txet' \(did you mean \"text\"\?\); .* id, text\."):
        compile_template(None, ["txet"]).bind({"id": None, "text": None}, "data")


def test_question_and_query_stand_for_each_other():
    template, notices = compile_template(QA, ["question", "answer"]).bind({"query": None, "answer": None}, "data")
    assert template.render({"query": "Who?", "answer": "Me."}) == "Q: Who?\nA: Me."
    assert len(notices) == 1 and "query" in notices[0]
    template, notices = compile_template(QA, None).bind(dict.fromkeys(["query", "question", "answer"]), "data")
    assert template.columns == ["question", "answer"] and not notices
