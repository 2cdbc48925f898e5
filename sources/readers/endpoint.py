"""Asks the hub's endpoint whether a repository can be read, and explains the errors of the hub's client.

A question is one small request with a time limit; the client honours HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN.
"""

import os
import threading
from collections.abc import Callable
from typing import Literal

from huggingface_hub import HfApi, constants, errors

from sources.source import SourceError, first_line

# The HTTP libraries that versions of the hub's client use.
NETWORK_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


def is_local(name: str) -> bool:
    """Return whether the name of a dataset or tokenizer means a local folder, not a repository on the hub."""
    return name.startswith(("./", "../", "/", "~")) or os.path.isdir(name)  # pathlib's raises where a name is too long


def unreachable(kind: Literal["dataset", "model"], name: str, timeout: float) -> str | None:
    """Ask the endpoint about a repository: None when it is there and open, else a short reason, within `timeout` s."""

    def question() -> str | None:
        try:
            HfApi().repo_info(name, repo_type=kind, timeout=timeout)
        except Exception as error:  # the client's HTTP library, and so its errors, depends on its version
            return explain(error, name).reason
        return None

    return within(timeout, question, f"{constants.ENDPOINT} does not answer within {timeout:g} s")


def within(timeout: float, question: Callable[[], str | None], too_slow: str) -> str | None:
    """Return the answer to `question`, or `too_slow` after `timeout` seconds: name resolution has no limit of its own.

    An OSError is an answer, too.
    """
    answer: list[str | None] = [too_slow]

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


def explain(error: BaseException, name: str) -> SourceError:
    """Return a SourceError that says what went wrong with repository `name`; looks at the error's causes too.

    Lost connections, stalls, rate limits and server errors are transient; refusals are not.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)

    def has(*kinds: type) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if has(errors.OfflineModeIsEnabled):
        return SourceError(f"HF_HUB_OFFLINE is set, and {name} is not in the cache")
    if has(errors.HFValidationError):
        return SourceError(f'"{name}" is not a repository name such as "owner/name", and no such local folder exists')
    endpoint = constants.ENDPOINT
    message = str(error)  # `datasets` cuts the chain of causes off and says the same in words
    libraries = {type(link).__module__.split(".")[0] for link in chain}
    status = next((link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)), None)
    if has(errors.GatedRepoError) or status == 403 or "gated dataset" in message:
        return SourceError(f"{name} is gated or private; get access on its page and log in (hf auth login, HF_TOKEN)")
    if has(errors.RevisionNotFoundError) or message.startswith("Revision "):
        return SourceError(f"{name} has no such revision")
    if has(errors.RepositoryNotFoundError) or status in (401, 404, 410) or "doesn't exist on the Hub" in message:
        return SourceError(f"{name} is not found at {endpoint}, or is private and needs a login (set HF_TOKEN)")
    if status == 429:
        return SourceError(f"{endpoint} asks for fewer requests (error 429)", transient=True)
    if status is not None:
        return SourceError(f"{endpoint} answers with error {status}", transient=status >= 500 or status == 408)
    if has(ConnectionError, TimeoutError) or NETWORK_LIBRARIES & libraries:
        return SourceError(f"{endpoint} cannot be reached ({type(chain[-1]).__name__})", transient=True)
    return SourceError(f"{name} cannot be read: {first_line(error)}")
