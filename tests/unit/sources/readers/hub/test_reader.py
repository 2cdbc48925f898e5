"""The real `datasets` library over a real HTTP connection to a small hub on this machine."""

import json
from pathlib import Path

import pytest

from sources.config import BUILTIN_SOURCES
from tests.helpers.hub_server import SHA, Fault, HubServer, json_gz, parquet, run_worker

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def pieces(texts) -> list[str]:
    return [text[start : start + 300] for text in texts[:40] for start in range(0, min(len(text), 3000), 300)]


def numbered(count: int) -> list[str]:
    return [f"data/train-{n:05}-of-{count:05}.parquet" for n in range(count)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory, pieces):
    """One worker opens everything: importing the library takes longest."""
    tmp_path = tmp_path_factory.mktemp("hub")
    rows = [{"id": n, "text": text} for n, text in enumerate(pieces)]
    pairs = [{"query": text[:40], "answer": text} for text in pieces[:90]]
    pairs += [
        {"query": None, "answer": "An answer"},
        {"query": "Why?", "answer": ""},
        {"query": "Why?", "answer": None},
    ]
    nested = [{"question": "Who?", "answers": {"text": ["", text]}} for text in pieces[:20]]
    whole = [{"question": text} for text in pieces]
    changed = [
        parquet(whole[:100]),
        parquet([{"query": row["question"]} for row in whole[100:150]]),
        parquet([{"id": number} for number in range(90)]),
        *[parquet(whole[150 + n :: 14]) for n in range(14)],
    ]
    local = tmp_path / "folder" / "data"
    local.mkdir(parents=True)
    (local / "train-00000-of-00001.parquet").write_bytes(parquet(rows[:100]))
    (local / "validation-00000-of-00001.parquet").write_bytes(parquet(rows[100:120]))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("en", "de"))
    two = f"---\nconfigs:\n{configs}---\n"
    with HubServer() as hub:
        hub.repositories = {
            "some/parquet": {f"data/train-{n:05}-of-00002.parquet": parquet(rows[n::2]) for n in range(2)},
            "some/many": {f"data/train-{n:05}-of-00017.parquet": parquet(rows[n::17]) for n in range(17)},
            "some/lines": {f"train-{n:05}-of-00003.json.gz": json_gz(rows[n::3]) for n in range(3)},
            "some/configs": {"README.md": two.encode(), "en/a.parquet": parquet(rows), "de/a.parquet": parquet(rows)},
            "some/secret": {"data/train-00000-of-00001.parquet": parquet(rows)},
            "some/script": {"script.py": b"import datasets", "README.md": b"# a script"},
            "some/nested": {
                "train.jsonl": "".join(json.dumps(row) + "\n" for row in [*nested, {"question": "Why?"}]).encode()
            },
            "some/answers": {"data/train-00000-of-00001.parquet": parquet(nested)},
            **{f"some/changed{n}": dict(zip(numbered(n), changed, strict=False)) for n in (3, 17)},
            "sentence-transformers/natural-questions": {"pair/train-00000-of-00001.parquet": parquet(pairs)},
        }
        hub.gated = {"some/secret"}
        hub.faults = [Fault("data/train-00003-of-00017.parquet", drop_after=100)]
        specs = [
            {"dataset": "some/parquet"},
            {"dataset": "some/many"},
            {"dataset": "some/lines"},
            {"dataset": "some/configs", "config": "en"},
            {"dataset": "some/configs", "name": "no config"},
            {"dataset": "some/configs", "config": "fr", "name": "wrong config"},
            {"dataset": "some/secret"},
            {"dataset": "some/script"},
            {"dataset": "some/missing"},
            {"dataset": "some/parquet", "split": "trian", "name": "wrong split"},
            {"dataset": "some/parquet", "text_field": "txt", "name": "wrong column"},
            {"dataset": "some/lines", "text_field": "body", "name": "wrong field"},
            {"dataset": "some/nested", "fields": {"q": "question", "a": "answers.text"}, "format": "Q: {q}\nA: {a}"},
            {"dataset": "some/answers", "fields": {"q": "question", "a": "answers.text"}, "format": "Q: {q}\nA: {a}"},
            {"dataset": "some/answers", "text_field": "answers.txt", "name": "wrong nested field"},
            {"dataset": "./folder"},
            {"dataset": "./no_folder"},
            {"dataset": "some/changed3", "text_field": "question"},
            {"dataset": "some/changed17", "text_field": "question"},
            {
                "dataset": "sentence-transformers/natural-questions",
                "fields": ["question", "answer"],
                "format": "Q: {question}\nA: {answer}",
            },
        ]
        answers = run_worker(tmp_path, hub.url, specs=[{"type": "hf", **spec} for spec in specs], probe=True)
        answers["requests"] = hub.requests
        assert not hub.faults[0].times, "the connection was never cut"
    return answers


@pytest.mark.parametrize("name, num_shards", [("some/parquet", None), ("some/many", 17), ("some/lines", 3)])
def test_every_row_once_and_every_cursor_exact(answers, pieces, name, num_shards):
    found = answers[name]
    assert found["failure"] is None
    assert sorted(found["texts"]) == sorted(pieces)
    assert found["resumes"] and found["reopened_equal"]
    assert found["pin"]["commit"] == SHA
    # Two files of several row groups are split further.
    assert found["num_shards"] == num_shards or (num_shards is None and found["num_shards"] > 4)
    assert found["probe"] is None


def test_reading_is_by_commit(answers):
    files = [request for request in answers["requests"] if "parquet" in request and "/resolve/" in request]
    assert files and all(f"/resolve/{SHA}/" in request for request in files)


def test_a_local_folder_in_hub_layout(answers, pieces):
    found = answers["./folder"]
    assert sorted(found["texts"]) == sorted(pieces[:100])
    assert found["resumes"] and found["num_shards"] == 3
    assert set(found["pin"]["files"]) == {
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    }


def test_question_is_read_from_query(answers, pieces):
    found = answers["sentence-transformers/natural-questions"]
    assert found["texts"] == [f"Q: {text[:40]}\nA: {text}" for text in pieces[:90]]
    assert found["notices"] == ["field question is read from the column query, since there is no column question"]
    assert found["counts"] == {"rows without text": 3}


@pytest.mark.parametrize("name", ["some/nested", "some/answers"])
def test_nested_fields(answers, pieces, name):
    assert answers[name]["texts"] == [f"Q: Who?\nA: {text}" for text in pieces[:20]]
    assert answers[name]["resumes"]


@pytest.mark.parametrize("num_files", [3, 17])
def test_files_with_other_columns_than_the_first(answers, pieces, num_files):
    """The second file calls its column `query`, the third has none of the two; by row groups and by whole files."""
    found = answers[f"some/changed{num_files}"]
    assert found["failure"] is None
    assert sorted(found["texts"]) == sorted(pieces[:150] if num_files == 3 else pieces)
    assert found["resumes"] and found["counts"] == {"files without the text field": 1}
    renamed, missing = sorted(notice.split("/data/")[1] for notice in found["notices"])
    assert renamed.startswith(f"train-00001-of-{num_files:05}.parquet: field question is read from the column query")
    assert "train-00002" in missing and "no column 'question'; its columns are id. Rows without it" in missing


def test_rows_that_lack_a_column_are_counted(answers):
    assert answers["some/nested"]["counts"]["rows without text"] > 0


@pytest.mark.parametrize(
    "name, parts",
    [
        ("no config", ["needs", "config", "en", "de"]),
        ("wrong config", ['"fr"', "en", "de"]),
        ("wrong split", ['"trian"', "train"]),
        ("wrong column", ["'txt'", "id, text", 'did you mean "text"?']),
        ("wrong field", ["'body'", "id, text"]),
        ("wrong nested field", ["'answers'", "'txt'", 'did you mean "text"?']),
        ("some/secret", ["gated", "HF_TOKEN"]),
        ("some/missing", ["not found", "HF_TOKEN"]),
        ("some/script", ["script"]),
        ("./no_folder", ["does not exist"]),
    ],
)
def test_failures_are_one_sentence(answers, name, parts):
    failure = answers[name]["failure"]
    for part in parts:
        assert part in failure
    assert "\n" not in failure and len(failure) < 300
    assert answers[name]["open_seconds"] < 30


def test_probes(answers):
    assert "not found" in answers["some/missing"]["probe"]
    assert "does not exist" in answers["./no_folder"]["probe"]
    assert answers["./folder"]["probe"] is None
    assert all(found["probe_seconds"] < 3 for name, found in answers.items() if name != "requests")


def test_a_builtin_is_read_at_its_revision_and_a_run_at_its_pin(tmp_path, pieces):
    """bookcorpus has no revision; its sentences are joined."""
    sentences = "".join(text.replace("\n", " ")[:60] + "\n" for text in pieces).encode()
    with HubServer() as hub:
        rows = [{"text": text} for text in pieces[:100]]
        hub.repositories = {
            "wikimedia/wikipedia": {
                "README.md": b"---\nconfigs:\n- config_name: 20231101.en\n  data_files: en/*.parquet\n---\n",
                "en/a.parquet": parquet(rows),
            },
            "rojagtap/bookcorpus": {"books_large_p1.txt": sentences, "books_large_p2.txt": sentences},
        }
        fresh = run_worker(tmp_path, hub.url, specs=["wikipedia", "bookcorpus"])
        asked = [request for request in hub.requests if "wikipedia" in request]
        pinned = run_worker(tmp_path, hub.url, specs=["wikipedia"], pins={"wikipedia": {"commit": SHA}})
    assert "has no such revision" in fresh["wikipedia"]["failure"]
    assert asked and all(BUILTIN_SOURCES["wikipedia"]["revision"] in request for request in asked)
    assert pinned["wikipedia"]["texts"] == pieces[:100] and pinned["wikipedia"]["pin"] == {"commit": SHA}
    books = fresh["bookcorpus"]
    assert [text.count("\n") for text in books["texts"]] == 2 * [127, 127, len(pieces) - 257]
    assert "\n".join(books["texts"][:3]) + "\n" == sentences.decode() and books["resumes"]


def test_a_worker_process_reads_on_behind_the_cache(tmp_path, tokenizer, texts):
    """The second start opens the dataset only in the worker, which continues where the cache ends."""
    with HubServer() as hub:
        hub.repositories = {"some/texts": {"train.parquet": parquet([{"text": text} for text in texts])}}
        described = [tokenizer.to_json(), tokenizer.eos_id]
        task = {"dataset": "some/texts", "tokenizer": described, "batches": [4, 40]}
        found = run_worker(tmp_path, hub.url, worker="hub_cache.py", **task)
    assert found["kinds"] == ["HubSource", "LazySource", "HubSource"]
    first, second, uncached = found["starts"]
    assert len(second) == 40 and first == second[:4] and second == uncached
