"""The hub as this project talks to it: is a repository there, which commit is newest, and what an error means.

Every question is one small request with a time limit; HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are honoured by the
library that sends it.
"""

import os
import threading
from collections.abc import Callable
from typing import Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

Kind = Literal["dataset", "model"]


def is_local(name: str) -> bool:
    """Tell whether a dataset's or tokenizer's name means a local folder rather than a repository on the hub."""
    return name.startswith(("./", "../", "/", "~")) or os.path.isdir(name)  # pathlib's raises where a name is too long


def newest_commit(dataset: str, revision: str | None, timeout: float = 10.0) -> str:
    """Return the commit that `revision` (default: the main branch) points to; raises what the hub's client raises."""
    return HfApi().dataset_info(dataset, revision=revision, timeout=timeout).sha


def unreachable(kind: Kind, name: str, timeout: float) -> str | None:
    """Ask the endpoint about a repository: None when it is there and open, else a short reason, within `timeout` s."""
    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info

    def question() -> str | None:
        try:
            ask(name, timeout=timeout)
        except Exception as error:  # network libraries differ between hub versions; explain() sorts them
            return explain(error, name)
        return None

    return within(timeout, question, f"{constants.ENDPOINT} does not answer within {timeout:g} s")


def within(timeout: float, question: Callable[[], str | None], too_slow: str) -> str | None:
    """Run `question` for at most `timeout` seconds (name resolution knows no limit of its own), else `too_slow`.

    An OSError of its is an answer, too.
    """
    answer = [too_slow]

    def ask() -> None:
        try:
            answer.append(question())
        except OSError as error:
            answer.append(f"{error.filename} cannot be opened ({error.strerror or error})")

    # A daemon: a question that hangs must not keep the process alive.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answer[-1]


def explain(error: BaseException, name: str) -> str:
    """Say in a few words what went wrong with repository `name`; looks at causes too."""
    reason, _ = _classify(error, name)
    return reason


def is_transient(error: BaseException) -> bool:
    """Tell whether trying again may help: lost connections, stalls, rate limits and server errors, not refusals."""
    _, transient = _classify(error, "")
    return transient


def _classify(error: BaseException, name: str) -> tuple[str, bool]:
    """Return what went wrong with repository `name`, and whether it may pass."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__

    def has(kind: type) -> bool:
        return any(isinstance(link, kind) for link in chain)

    if has(OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and it is not in the cache", False
    if has(HFValidationError):
        return f'"{name}" is not a repository name such as "owner/name", and no such local folder exists', False
    message = str(error)  # `datasets` cuts the chain of causes off and says the same in words
    status = next((link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)), None)
    if has(GatedRepoError) or status == 403 or "gated dataset" in message:
        asking = "ask for access on its page and log in (hf auth login, or set HF_TOKEN)"
        return f"{name} is gated or private; {asking}", False
    if has(RevisionNotFoundError) or message.startswith("Revision "):
        return f"{name} has no such revision", False
    if has(RepositoryNotFoundError) or status in (401, 404, 410) or "doesn't exist on the Hub" in message:
        return f"{name} is not found at {constants.ENDPOINT}, or is private and needs a login (set HF_TOKEN)", False
    if status == 429:
        return f"{constants.ENDPOINT} asks for fewer requests (error 429)", True
    if status is not None:
        return f"{constants.ENDPOINT} answers with error {status}", status >= 500 or status == 408
    if any(isinstance(link, (ConnectionError, TimeoutError)) or _is_of_network(link) for link in chain):
        return f"{constants.ENDPOINT} cannot be reached ({type(chain[-1]).__name__})", True
    return f"{name} cannot be read: {message.splitlines()[0] if message else type(error).__name__}", False


def _is_of_network(error: BaseException) -> bool:
    """Tell whether an error comes from the hub client's HTTP library (httpx, httpx2 or requests, by its version)."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
