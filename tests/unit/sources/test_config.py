"""What a preset's `data` section may say, and the sentence that refuses what it may not."""

import pytest
from pydantic import ValidationError

from sources.config import BUILTIN_LICENCES, BUILTIN_SOURCES, DataConfig, HubSpec, TrainBPE, builtin_licences
from tests.helpers.text import REPOSITORY


def refusal(**data) -> str:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(data)
    return "\n".join(error["msg"] for error in caught.value.errors())


def test_defaults_and_builtin_names_become_specs():
    (wikipedia,) = DataConfig().sources
    assert isinstance(wikipedia, HubSpec)
    assert (wikipedia.source_name, wikipedia.dataset, wikipedia.config) == (
        "wikipedia",
        "wikimedia/wikipedia",
        "20231101.en",
    )
    everything = DataConfig(sources=list(BUILTIN_SOURCES))
    assert [spec.source_name for spec in everything.sources] == list(BUILTIN_SOURCES)


def test_a_dump_can_be_read_again():
    config = DataConfig(sources=["c4", {"type": "files", "path": "notes"}], tokenizer={"train_bpe": 512})
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


def test_builtin_revisions_are_commits_that_a_dump_does_not_show():
    """Runs and caches know a source by its dump, which must not change when a revision is added or raised."""
    config = DataConfig(sources=["wikipedia", {"type": "hf", "dataset": "allenai/c4", "config": "en", "revision": "x"}])
    wikipedia, c4 = config.sources
    assert wikipedia.revision is None and "join_rows" not in wikipedia.model_dump(mode="json")
    assert wikipedia.known_revision == BUILTIN_SOURCES["wikipedia"]["revision"] and c4.known_revision == "x"
    (again,) = DataConfig.model_validate_json(config.model_dump_json(include={"sources": {0}})).sources
    assert again.known_revision == wikipedia.known_revision
    named_alike = HubSpec(type="hf", dataset="me/wikipedia", name="wikipedia")
    assert named_alike.known_revision is None
    for source in BUILTIN_SOURCES.values():
        assert len(revision := source.get("revision", "a" * 40)) == 40 and int(revision, 16)


def test_licences_of_builtin_sources_are_those_of_the_documents():
    config = DataConfig(sources=list(BUILTIN_SOURCES)).model_dump(mode="json")
    assert builtin_licences(config["sources"]) == BUILTIN_LICENCES
    rows = [line for line in (REPOSITORY / "docs/sources.md").read_text().splitlines() if line.startswith('| `"')]
    table = {row.split("`")[1].strip('"'): row.strip("| ").rpartition(" | ")[2] for row in rows}
    assert {name: table[name] for name in BUILTIN_LICENCES} == BUILTIN_LICENCES


@pytest.mark.parametrize(
    "source",
    [
        {"name": "wikipedia", "type": "hf", "dataset": "me/wikipedia", "config": "20231101.en"},
        {"name": "wikipedia", "type": "hf", "dataset": "wikimedia/wikipedia", "config": "20231101.de"},
        {"type": "hf", "dataset": "wikimedia/wikipedia", "config": "20231101.en"},
        {"name": ["wikipedia"]},
        {},
        "wikipedia",
        None,
    ],
    ids=str,
)
def test_what_is_no_builtin_source_has_no_licence_that_is_known(source):
    assert builtin_licences([source]) == {}


def test_bookcorpus_joins_its_sentences():
    (bookcorpus,) = DataConfig(sources=["bookcorpus"]).sources
    assert bookcorpus.join_rows == 128 and bookcorpus.model_dump()["join_rows"] == 128


def test_names_come_from_name_or_dataset_or_path():
    specs = DataConfig(
        sources=[
            {"type": "hf", "dataset": "a/b"},
            {"type": "hf", "dataset": "a/b", "name": "again"},
            {"type": "pdf", "path": "./papers"},
            {"type": "python_packages"},
        ]
    ).sources
    assert [spec.source_name for spec in specs] == ["a/b", "again", "./papers", "python_packages"]


def test_local_folders_and_repositories_are_distinguished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    local = {name: HubSpec(type="hf", dataset=name).folder is not None for name in ("here", "./new", "~/x", "owner/x")}
    assert local == {"here": True, "./new": True, "~/x": True, "owner/x": False}


@pytest.mark.parametrize(
    "data, parts",
    [
        ({"sources": ["wikipeda"]}, ['"wikipeda"', 'did you mean "wikipedia"?', "openwebtext"]),
        ({"sources": []}, ["empty"]),
        ({"sources": "wikipedia"}, ["not a list"]),
        ({"sources": ["c4", "c4"]}, ['two sources are called "c4"']),
        ({"sources": [{"type": "pfd", "path": "x"}]}, ['unknown type "pfd"', 'did you mean "pdf"?']),
        ({"sources": [{"path": "x"}]}, ["has no type"]),
        ({"sources": ["c4"], "mix_strategy": "weighted", "source_weights": {"c5": 1}}, ['"c5"', 'did you mean "c4"?']),
        ({"sources": ["c4"], "mix_strategy": "weighted", "source_weights": {"c4": 0}}, ["greater than 0"]),
        ({"sources": ["c4"], "mix_strategy": "weighted", "source_weights": {"c4": -1}}, ["greater than 0"]),
        ({"sources": ["c4"], "mix_strategy": "weighted", "source_weights": {"c4": float("nan")}}, ["finite"]),
        ({"sources": ["c4"], "source_weights": {"c4": 2}}, ["round_robin", '"weighted"']),
        ({"tokenizer": {"train_bpe": 100}}, ["300"]),
        ({"min_text_length": -1}, ["0"]),
        ({"sources": [{"type": "files", "path": "x", "glob": "../*"}]}, ["'../*'", "below the folder"]),
        ({"sources": [{"type": "files", "path": "x", "glob": "**.md"}]}, ["'**.md'", '"**/*.md"']),
        ({"sources": [{"type": "files", "path": "x", "glob": "."}]}, ["'.' must name files", '"**/*.md"']),
        ({"sources": [{"type": "files", "path": "~nobody-here/x"}]}, ["'~nobody-here/x'", "home folder"]),
        ({"sources": [{"type": "pdf", "path": "~nobody-here/x"}]}, ["'~nobody-here/x'", "home folder"]),
        ({"sources": [{"type": "hf", "dataset": "~nobody-here/x"}]}, ["'~nobody-here/x'", "home folder"]),
        ({"tokenizer": "~nobody-here/x"}, ["'~nobody-here/x'", "home folder"]),
        ({"decontaminate": ["~nobody-here/x"]}, ["'~nobody-here/x'", "home folder"]),
        ({"cache_dir": "~nobody-here/x"}, ["'~nobody-here/x'", "home folder"]),
        ({"sources": [{"type": "hf", "dataset": "a/b", "join_rows": 1}]}, ["2"]),
        ({"sources": [{"type": "files", "path": "x", "join_rows": 1001}]}, ["1000"]),
        ({"sources": [{"type": "files", "path": "x", "join_rows": True}]}, ["integer"]),
        ({"sources": [{"type": ["hf"]}]}, ["unknown type", '"type": one of hf, pdf']),
        ({"sources": [{"type": "files", "path": "x", "text_field": "a..b"}]}, ["'a..b'", "answers.text"]),
        (
            {"sources": [{"type": "hf", "dataset": "d", "text_field": "a", "fields": ["b"]}]},
            ['"text_field"', '"fields"'],
        ),
        (
            {"sources": [{"type": "hf", "dataset": "d", "fields": ["question"], "format": "{qestion}"}]},
            ["{qestion}", 'did you mean "question"?'],
        ),
    ],
)
def test_refusals_are_sentences(data, parts):
    message = refusal(**data)
    for part in parts:
        assert part in message


def test_unknown_keys_are_reported_as_such():
    with pytest.raises(ValidationError) as caught:
        DataConfig(sources=[{"type": "hf", "dataset": "d", "splitt": "train"}])
    (error,) = caught.value.errors()
    assert error["type"] == "extra_forbidden"
    assert error["loc"][-1] == "splitt"


def test_missing_weights_are_one():
    config = DataConfig(sources=["c4", "wikipedia"], mix_strategy="weighted", source_weights={"wikipedia": 3})
    assert config.weights() == {"c4": 1.0, "wikipedia": 3.0}


def test_train_bpe_is_a_size():
    assert DataConfig(tokenizer={"train_bpe": 300}).tokenizer == TrainBPE(train_bpe=300)
    assert DataConfig().tokenizer == "gpt2"
