"""Asks the hub's endpoint, or its cache, whether a repository can be read, and explains the errors of the hub's client.

A question is one small request with a time limit; the client (client.py) honours HF_ENDPOINT, HF_HUB_OFFLINE and
HF_TOKEN.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, errors, snapshot_download

from sources.readers.hub.client import retry_after
from sources.source import SourceError, first_line

# The HTTP libraries that versions of the hub's client use.
NETWORK_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
# Not refusals: asked too slowly, amid a change, at the wrong server, too early, too often.
TRANSIENT_STATUSES = {408, 409, 421, 423, 425, 429}

T = TypeVar("T")


def is_local(name: str) -> bool:
    """Return whether the name of a dataset or tokenizer means a local folder, not a repository on the hub."""
    return name.startswith(("./", "../", "/", "~")) or os.path.isdir(name)  # pathlib's raises where a name is too long


def ask(
    kind: Literal["dataset", "model"], name: str, timeout: float, revision: str | None = None
) -> SourceError | None:
    """Ask the endpoint about a repository: None when it is there and open, else why not, within `timeout` s."""

    def question() -> SourceError | None:
        try:
            HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=timeout)
        except Exception as error:  # the client's HTTP library, and so its errors, depends on its version
            return explain(error, name)
        return None

    too_slow = SourceError(f"{constants.ENDPOINT} does not answer within {timeout:g} s", transient=True)
    return within(timeout, question, too_slow)


def unreachable(kind: Literal["dataset", "model"], name: str, timeout: float) -> str | None:
    """The reason that `ask` gives, in words."""
    failure = ask(kind, name, timeout)
    return failure and failure.reason


def is_offline() -> bool:
    return constants.HF_HUB_OFFLINE


def cached_folder(dataset: str, revision: str | None) -> Path:
    """Return the folder of a downloaded dataset in the hub's cache, in hub layout and named after its commit; raises
    SourceError.

    `revision` is a commit, a branch or a tag; None means the main branch as it was downloaded last.
    """
    try:
        return Path(snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError as error:  # also where a download was interrupted
        raise not_downloaded(dataset) from error
    except ValueError as error:
        raise explain(error, dataset) from error


def not_downloaded(dataset: str) -> SourceError:
    """The error for a dataset of which the cache has nothing, or too little."""
    return SourceError(
        f"HF_HUB_OFFLINE is set, and {dataset} is not in the cache, or not whole; unset it, or download the dataset "
        f"first (hf download --repo-type dataset {dataset})"
    )


def within(timeout: float, question: Callable[[], T], too_slow: T) -> T:
    """Return the answer to `question`, or `too_slow` after `timeout` seconds: name resolution has no limit of its
    own."""
    answer = [too_slow]
    # A daemon: a question that hangs must not keep the process alive.
    thread = threading.Thread(target=lambda: answer.append(question()), daemon=True)
    thread.start()
    thread.join(timeout)
    return answer[-1]


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and what led to it, back to the first cause."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    return chain


def is_refusal(error: BaseException) -> bool:
    """Whether a server has answered, and has refused, be it the hub or one that it redirects to."""
    chain = causes(error)
    status = _status(chain)
    if status is not None:
        return not _is_transient(status)
    return any(isinstance(link, FileNotFoundError) for link in chain)  # a repository or file that is not listed


def is_gated(error: BaseException) -> bool:
    """Whether the hub itself says that a repository needs its owner's leave."""
    # `datasets` cuts the chain of causes off and says the same in words.
    return "gated dataset" in str(error) or any(isinstance(link, errors.GatedRepoError) for link in causes(error))


def refusal(error: BaseException, name: str) -> str:
    """Say that a file is refused of a repository that is there and open."""
    chain = causes(error)
    status = _status(chain)
    says = f"refuses a file of {name} (error {status})" if status else f"does not list a file of {name}"
    return f"{_host(chain)} {says}, although the repository can be read"


def explain(error: BaseException, name: str) -> SourceError:
    """Return a SourceError that says what went wrong with repository `name`; looks at the error's causes too.

    Lost connections, stalls, rate limits and server errors are transient; refusals are not.
    """
    chain = causes(error)

    def has(*kinds: type) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if known := next((link for link in chain if isinstance(link, SourceError)), None):
        return known
    if has(errors.OfflineModeIsEnabled):
        return SourceError(f"HF_HUB_OFFLINE is set, and {name} is not in the cache")
    if has(errors.HFValidationError):
        return SourceError(f'"{name}" is not a repository name such as "owner/name", and no such local folder exists')
    endpoint = constants.ENDPOINT
    host = _host(chain)
    message = str(error)  # `datasets` cuts the chain of causes off and says the same in words
    status = _status(chain)
    if is_gated(error) or status == 403:
        return SourceError(f"{name} is gated or private; get access on its page and log in (hf auth login, HF_TOKEN)")
    if has(errors.RevisionNotFoundError) or message.startswith("Revision "):
        return SourceError(f"{name} has no such revision")
    if has(errors.RepositoryNotFoundError) or status in (401, 404, 410) or "doesn't exist on the Hub" in message:
        return SourceError(f"{name} is not found at {endpoint}, or is private and needs a login (set HF_TOKEN)")
    if status is not None:
        response = next(link.response for link in chain if isinstance(link, errors.HfHubHTTPError))
        says = "asks for fewer requests (error 429)" if status == 429 else f"answers with error {status}"
        transient = _is_transient(status)
        return SourceError(
            f"{host} {says}", transient=transient, retry_after=retry_after(response.headers) if transient else None
        )
    if has(ConnectionError, TimeoutError) or _is_network(chain):
        return SourceError(f"{host} cannot be reached ({type(chain[-1]).__name__})", transient=True)
    return SourceError(f"{name} cannot be read: {first_line(error)}")


def _status(chain: list[BaseException]) -> int | None:
    return next((link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)), None)


def _is_transient(status: int) -> bool:
    return status >= 500 or status in TRANSIENT_STATUSES


def _is_network(chain: list[BaseException]) -> bool:
    return any(type(link).__module__.split(".")[0] in NETWORK_LIBRARIES for link in chain)


def _host(chain: list[BaseException]) -> str:
    """Return the endpoint, or the other host that was asked because the endpoint redirects there."""
    for link in chain:
        try:
            url = urlsplit(str(link.request.url))  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError, ValueError):  # RuntimeError: of an error that no request was set for
            continue
        if url.netloc != urlsplit(constants.ENDPOINT).netloc:
            return f"{url.scheme}://{url.netloc}, where {constants.ENDPOINT} sends readers,"
    return constants.ENDPOINT
