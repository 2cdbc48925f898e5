"""The hub's client as this project uses it, for data and tokenizers alike: it never sleeps out what a server asks for,
and takes no other answer for the one it asked for. Importing this module sets it up, once a process.

By itself the client sleeps through a `Retry-After`, be it an hour, and through five pauses of its own, without a word.
Here a refusal is raised at once, and whoever asked waits (sources/retries.py). For a connection that drops one silent
second try is left, a second later.

What is read from a hub must not depend on chance. So half an answer, a whole file in place of a part, or a portal's
login page in place of JSON is a failure of the network, and never a damaged file.
"""

import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http, parse_ratelimit_headers

from sources.source import SourceError

TIMEOUT = 10.0  # seconds without a byte, for requests that have no limit of their own
DROPPED_WAIT = 1.0  # seconds before the second try after a connection that dropped
_API = ("/api/datasets/", "/api/models/")

_backoff = _http._http_backoff_base  # under both http_backoff and http_stream_backoff, which all modules use


def _raise_at_once(**options: Any) -> Iterator[Any]:
    limits = {"timeout": options.get("timeout") or TIMEOUT, "max_retries": 1, "base_wait_time": DROPPED_WAIT}
    return _backoff(**{**options, **limits, "retry_on_status_codes": ()})


def _check(response: Any) -> None:
    """Raise SourceError where a success is not the answer to what was asked."""
    request, host = response.request, response.url.host
    if not response.is_success or request.method != "GET":
        return
    if request.url.path.startswith(_API) and "json" not in response.headers.get("Content-Type", ""):
        raise SourceError(f"{host} answers with a page where the hub's data should be", transient=True)
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
    if asked and not _is_range(response.headers, int(asked[1]), int(asked[2])):
        raise SourceError(f"{host} answers with another part of a file than the one asked for", transient=True)


def _is_range(headers: Mapping[str, str], first: int, last: int) -> bool:
    """Whether these are the headers of bytes `first` to `last` of a file, or to its end where that comes earlier."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
    return found is not None and (int(found[1]), int(found[2])) == (first, min(last, int(found[3]) - 1))


def _client() -> Any:
    client = _http.default_client_factory()
    client.event_hooks = {**client.event_hooks, "response": [_check]}
    return client


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return in how many seconds a server wants to be asked again; None where it does not say so.

    It says so by what is left of a rate limit, or by `Retry-After`: a number of seconds, or a date.
    """
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - _now(headers))
    except (ValueError, OverflowError):  # no date, or none that a calendar has
        return None


def _now(headers: Mapping[str, str]) -> float:
    """The server's time, whose clock its dates are by."""
    try:
        return parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except (ValueError, OverflowError):
        return time.time()


_http._http_backoff_base = _raise_at_once
set_client_factory(_client)
constants.HF_HUB_DISABLE_XET = True  # which downloads, and waits, by a client of its own
