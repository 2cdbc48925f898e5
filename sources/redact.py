"""Keeps secrets out of everything that is shown or written: tokens of the hub and of trackers, logins inside addresses.

`redact` is applied where text leaves the program (console, metrics, reasons of failures); `redact_process` covers what
libraries log and warn of, and tracebacks.
"""

import functools
import logging
import os
import re
import sys
import threading
import traceback
import warnings

from huggingface_hub import constants

from storage import open_regular

_PATTERNS = (
    # Tokens are random: with a capital or a digit, unless they are long. "hf_transfer" is a package.
    (re.compile(r"hf_(?:(?:oauth|jwt)_[\w.-]+|(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}|[a-z]{20,})"), "hf_***"),
    (re.compile(r"""(?<=://)[^\s/?#"'\\]+@"""), "***@"),
)
MOST_BYTES = 100_000  # of the file that holds a token
_OF_TRACKERS = ("WANDB_API_KEY", "TRACKIO_WRITE_TOKEN")  # variables that hold secrets
_SHORTEST = 8  # characters; a shorter value is no token and may be part of any word


def redact(text: str) -> str:
    """Return `text` with every hub token, this machine's own included, and every login in an address replaced."""
    for secret in (os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN"), _stored_token()):
        if secret and len(secret.strip()) >= _SHORTEST:
            text = text.replace(secret.strip(), "hf_***")
    for secret in map(os.environ.get, _OF_TRACKERS):
        if secret and len(secret.strip()) >= _SHORTEST:
            text = text.replace(secret.strip(), "***")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_process() -> None:
    """Redact log records, warnings and the tracebacks of uncaught exceptions in this process and its threads."""
    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning

    def redacted_record(*arguments, **options) -> logging.LogRecord:
        record = make_record(*arguments, **options)
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit the message, which logging itself would print unredacted
            message = f"{record.msg} {record.args}"
        record.msg, record.args = redact(message), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = _traceback(*record.exc_info)
        return record

    def print_thread_failure(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit:
            name = failed.thread.name if failed.thread else "unknown"
            print(f"In thread {redact(name)}: {_traceback(*failed[:3])}", file=sys.stderr)

    logging.setLogRecordFactory(redacted_record)
    warnings.formatwarning = lambda *arguments, **options: redact(format_warning(*arguments, **options))
    sys.excepthook = lambda *failed: print(_traceback(*failed), file=sys.stderr)
    threading.excepthook = print_thread_failure


@functools.cache
def _stored_token() -> str | None:
    """Return the token of an earlier `hf auth login`, read once; the hub library's own function may use the network."""
    try:
        with open_regular(constants.HF_TOKEN_PATH) as file:
            return file.read(MOST_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return None


def _traceback(*failed) -> str:
    return redact("".join(traceback.format_exception(*failed))).rstrip()
