"""What the endpoint's errors mean, which of them may pass, and that no question takes longer than its limit."""

import socket
import threading
import time

import pytest
from huggingface_hub import HfApi, errors

from sources.readers.hub.endpoint import explain, is_local, unreachable, within
from sources.source import SourceError
from tests.helpers.hub_server import Fault, HubServer, parquet, run_worker


@pytest.mark.parametrize("name", ["./data", "../data", "/data", "~/data", "here"])
def test_a_path_or_a_folder_that_is_there_is_local(name: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_local(name)
    assert not is_local("owner/name") and not is_local("x" * 300)


def caused_by(cause: Exception) -> Exception:
    """An error of another library, as it stands before a connection's."""
    error = RuntimeError("the stream ended\nearly")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason", "transient"),
    [
        (ConnectionResetError("reset"), "cannot be reached (ConnectionResetError)", True),
        (TimeoutError("slow"), "cannot be reached (TimeoutError)", True),
        (caused_by(ConnectionRefusedError("no")), "cannot be reached (ConnectionRefusedError)", True),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set, and owner/name is not in the cache", False),
        (errors.HFValidationError("bad"), '"owner/name" is not a repository name such as "owner/name"', False),
        (RuntimeError("Dataset 'x' is a gated dataset on the Hub."), "owner/name is gated or private; ", False),
        (RuntimeError("Dataset 'x' doesn't exist on the Hub"), "owner/name is not found at", False),
        (RuntimeError("Revision 'y' doesn't exist"), "owner/name has no such revision", False),
        (caused_by(ValueError("x")), "owner/name cannot be read: the stream ended", False),
        (ValueError(), "owner/name cannot be read: ValueError", False),
    ],
)
def test_an_error_is_explained_in_one_sentence(error: Exception, reason: str, transient: bool):
    explained = explain(error, "owner/name")
    assert reason in explained.reason and explained.transient is transient and "\n" not in explained.reason


@pytest.fixture(scope="module")
def explained() -> dict[int, SourceError]:
    """What real answers with a status mean."""
    statuses = (401, 404, 403, 408, 410, 418, 429, 500, 503)
    with HubServer() as hub:
        hub.repositories = {f"some/{status}": {"a.parquet": parquet([{"text": "x"}])} for status in statuses}
        hub.faults = [Fault(f"some/{status}", times=99, status=status) for status in statuses]
        found = {}
        for status in statuses:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(errors.HfHubHTTPError) as caught:
                patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
                HfApi(endpoint=hub.url, token=False).repo_info(f"some/{status}", repo_type="dataset", timeout=10)
            found[status] = explain(caught.value, f"some/{status}")
    return found


@pytest.mark.parametrize(
    ("status", "reason", "transient"),
    [
        (401, "is not found at", False),
        (404, "is not found at", False),
        (410, "is not found at", False),
        (403, "is gated or private", False),
        (408, "answers with error 408", True),
        (418, "answers with error 418", False),
        (429, "asks for fewer requests", True),
        (500, "answers with error 500", True),
        (503, "answers with error 503", True),
    ],
)
def test_a_status_is_a_refusal_or_may_pass(explained, status: int, reason: str, transient: bool):
    assert reason in explained[status].reason and explained[status].transient is transient


def test_no_question_takes_longer_than_its_limit():
    answered, began = threading.Event(), time.monotonic()
    assert within(0.1, lambda: str(answered.wait(60)), "too slow") == "too slow"
    assert time.monotonic() - began < 10
    answered.set()
    assert within(10.0, lambda: "an answer", "too slow") == "an answer"
    assert within(10.0, lambda: None, "too slow") is None


def test_without_a_network_the_cache_is_named():
    """Tests run with HF_HUB_OFFLINE."""
    assert unreachable("dataset", "owner/name", 10.0) == "HF_HUB_OFFLINE is set, and owner/name is not in the cache"


def test_an_endpoint_that_is_not_there(tmp_path):
    with socket.socket() as listener:  # taken, so nobody else answers; full, so nothing does
        listener.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        answer = run_worker(tmp_path, endpoint, specs=["wikipedia"], probe=True, tokenizer="gpt2")
    found = answer["wikipedia"]
    assert "cannot be reached" in found["failure"] and endpoint in found["failure"]
    assert "cannot be reached" in found["probe"] or "does not answer" in found["probe"]
    assert found["probe_seconds"] < 3
    assert found["open_seconds"] < 60
    assert '"gpt2" cannot be loaded' in answer["tokenizer"] and "train_bpe" in answer["tokenizer"]
