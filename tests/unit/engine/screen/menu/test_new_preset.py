"""engine/screen/menu/new_preset.py: five answers to a preset that loads."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import CONFIGS, load_preset
from engine.errors import PresetError
from engine.screen.menu.new_preset import Ask, Question, Values, new_preset

BASE = CONFIGS / "00_best_general.json"


def answering(*answers: str) -> Ask:
    left: Iterator[str] = iter(answers)

    def ask(question: Question, values: Values) -> str:
        answer = next(left)
        assert not question.problem(values, answer), question.problem(values, answer)
        return answer

    return ask


def test_empty_answers_keep_what_the_preset_has(tmp_path: Path):
    path = new_preset(BASE, answering("", "", "", "", ""), tmp_path)
    made, base = load_preset(path), load_preset(BASE)
    assert path.name == "00_best_general_2.json" and made.name == "best_general_2"
    assert (made.model, made.train, made.data, made.auxiliary) == (base.model, base.train, base.data, base.auxiliary)


def test_answers_become_sections(tmp_path: Path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("text")
    (tmp_path / "07_other.json").write_text('{"name": "other"}')
    path = new_preset(BASE, answering(str(notes), "8192", "320x4", "128", "My notes"), tmp_path)
    made = load_preset(path)
    assert path.name == "08_my_notes.json" and made.name == "My notes"
    assert [spec.source_name for spec in made.data.sources] == [str(notes)] and made.data.tokenizer.train_bpe == 8192
    assert (made.model.hidden_size, made.model.num_layers, made.model.seq_length) == (320, 4, 128)
    assert made.model.hidden_size // made.model.num_heads == 64 and made.model.qk_norm
    assert json.loads(path.read_text())["$schema"] == "./preset.schema.json"


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("owner/name", {"type": "hf", "dataset": "owner/name"}),
        ("wikipedia", "wikipedia"),
        ("papers", {"type": "pdf", "path": "papers"}),
        ("papers/a.pdf", {"type": "pdf", "path": "papers/a.pdf"}),
        ("both/a.md", {"type": "files", "path": "both/a.md"}),
        ("both", [{"type": "files", "path": "both"}, {"type": "pdf", "path": "both", "name": "pdf"}]),
    ],
)
def test_a_source_is_known_by_what_it_is(tmp_path: Path, monkeypatch, source: str, made):
    base = BASE.resolve()
    monkeypatch.chdir(tmp_path)
    for name in ("papers/a.pdf", "both/a.pdf", "both/a.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    path = new_preset(base, answering(source, "", "", "", ""), tmp_path)
    assert json.loads(path.read_text())["data"]["sources"] == (made if isinstance(made, list) else [made])


@pytest.mark.parametrize(
    ("number", "answer", "problem"),
    [
        (0, "./nowhere", "no folder, file or dataset"),
        (1, "12", "greater than or equal to 300"),
        (2, "256", "is not WIDTHxLAYERS"),
        (2, "257x3", "rotary positions need pairs"),
        (3, "many", "is no number of tokens"),
        (3, "1", "greater than or equal to 2"),
        (4, "a/b", "should match pattern"),
        (4, "taken", "there is a preset taken already"),
    ],
)
def test_an_answer_is_checked_while_it_is_typed(tmp_path: Path, number: int, answer: str, problem: str):
    (tmp_path / "00_x.json").write_text('{"name": "taken"}')
    seen: list[tuple[Question, Values]] = []
    new_preset(BASE, lambda question, values: seen.append((question, values)) or "", tmp_path)
    question, values = seen[number]
    assert problem in question.problem(values, answer) and not question.problem(values, "")
    assert len(seen) == 5


def test_giving_up_and_a_folder_that_cannot_be_written_write_nothing(tmp_path: Path):
    def give_up(question: Question, values: Values) -> str:
        raise EOFError

    with pytest.raises(EOFError):
        new_preset(BASE, give_up, tmp_path)
    with pytest.raises(PresetError, match="cannot be written"):
        new_preset(BASE, answering("", "", "", "", ""), tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_the_size_is_said_while_the_shape_is_typed(tmp_path: Path):
    seen: list[tuple[Question, Values]] = []
    new_preset(BASE, lambda question, values: seen.append((question, values)) or "", tmp_path)
    notes = [question.note(values, "") for question, values in seen]
    assert notes == ["", "", "29.9M parameters, 6 attention heads", "", ""]
    question, values = seen[2]
    assert question.note(values, "128x2") == "6.83M parameters, 2 attention heads"
