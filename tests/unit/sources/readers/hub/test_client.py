"""What the hub's client does with refusals and with odd answers: over HTTP, from a hub on this machine."""

import time
from email.utils import formatdate

import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._runtime import is_xet_available

from sources.readers.hub.client import retry_after
from sources.readers.hub.endpoint import explain
from sources.source import SourceError
from tests.helpers.hub_server import Fault, HubServer, parquet

SLEEPY = {"Retry-After": "600"}
NOW = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    HfFileSystem.clear_instance_cache()
    with HubServer() as served:
        served.repositories = {"some/data": {"a/b.parquet": parquet([{"text": "x" * 500}])}}
        served.repositories["models/some/model"] = {"tokenizer.json": b"{}"}
        yield served
    HfFileSystem.clear_instance_cache()


def read(hub: HubServer) -> bytes:
    files = HfFileSystem(endpoint=hub.url, token=False)
    with files.open("datasets/some/data/a/b.parquet", cache_type="none") as stream:
        return stream.read(100)


def download(hub: HubServer, tmp_path) -> str:
    return hf_hub_download("some/model", "tokenizer.json", endpoint=hub.url, token=False, cache_dir=tmp_path)


@pytest.mark.parametrize("path", ["resolve", "tree"])
def test_no_request_sleeps_as_long_as_a_server_says(hub, path):
    """Of the file system: a file's bytes, and the listing of a folder."""
    hub.faults = [Fault(path, status=429, headers=SLEEPY)]
    began = time.monotonic()
    with pytest.raises(HfHubHTTPError) as caught:
        read(hub)
    assert time.monotonic() - began < 5 and retry_after(caught.value.response.headers) == 600
    assert len(read(hub)) == 100


def test_no_download_sleeps_as_long_as_a_server_says(hub, tmp_path):
    hub.faults = [Fault("resolve", status=429, headers=SLEEPY)]
    began = time.monotonic()
    with pytest.raises(HfHubHTTPError):
        download(hub, tmp_path)
    assert time.monotonic() - began < 5
    assert download(hub, tmp_path).endswith("tokenizer.json")


def test_no_other_client_downloads():
    assert not is_xet_available()


def test_a_dropped_connection_is_tried_once_more(hub, monkeypatch):
    monkeypatch.setattr("sources.readers.hub.client.DROPPED_WAIT", 0.01)
    hub.faults = [Fault("resolve", drop_after=10)]
    assert len(read(hub)) == 100
    hub.faults = [Fault("resolve", drop_after=10, times=2)]
    with pytest.raises(Exception) as caught:
        read(hub)
    assert explain(caught.value, "some/data").transient


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("resolve", status=200), "another part of a file"),
        (Fault("resolve", status=206, headers={"Content-Range": "bytes 7-106/900"}), "another part of a file"),
        (Fault("tree", status=200, headers={"Content-Type": "text/html"}), "a page where the hub's data should be"),
        (Fault("revision", status=200), "a page where the hub's data should be"),
    ],
)
def test_another_answer_is_a_failure_that_passes(hub, fault, sentence):
    hub.faults = [fault]
    with pytest.raises(SourceError, match=sentence) as caught:
        HfApi(endpoint=hub.url, token=False).dataset_info("some/data", revision="a" * 40)
        read(hub)
    assert caught.value.transient and len(read(hub)) == 100


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:29:30 GMT", "Date": NOW}, 90.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:00:00 GMT", "Date": NOW}, 0.0),
        ({"Retry-After": "Wed, 99 Oct 2015 07:28:00 GMT", "Date": NOW}, None),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "9"}, 55.0),
        ({"RateLimit": '"api";r=3;t=55', "Retry-After": "9"}, 9.0),
    ],
)
def test_when_a_server_wants_to_be_asked_again(headers: dict[str, str], seconds: float | None):
    assert retry_after(headers) == seconds


def test_a_date_without_the_servers_own_is_by_our_clock():
    found = retry_after({"Retry-After": formatdate(time.time() + 60, usegmt=True)})
    assert found is not None and 50 < found <= 60
