"""Which words are secrets, and that a process shows none of them anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sources.redact import redact
from tests.helpers.text import REPOSITORY

TOKEN = "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"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {TOKEN}.", "Bearer hf_***."),
        (f'{{"token":"{TOKEN}"}}', '{"token":"hf_***"}'),
        ("hf_a1b2c3d4 and hf_" + "a" * 34, "hf_*** and hf_***"),
        ("hf_oauth_eyJhbGci.eyJ-zdWI_x.sig", "hf_***"),
        ("hf_transfer, hf_hub_download, hf_documentation", "hf_transfer, hf_hub_download, hf_documentation"),
        ("https://someone:pass@hub.example/a@b", "https://***@hub.example/a@b"),
        ("https://someone:p@ss@hub.example", "https://***@hub.example"),
        ("https://hub.example?mail=me@hub.example", "https://hub.example?mail=me@hub.example"),
        (f"https://{TOKEN}@hub.example", "https://***@hub.example"),
        ("https://hub.example/a?mail=me@hub.example", "https://hub.example/a?mail=me@hub.example"),
        ("write to me@hub.example", "write to me@hub.example"),
    ],
)
def test_secrets_are_recognized_by_their_form(text: str, shown: str):
    assert redact(text) == shown


def test_the_keys_of_trackers_are_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert redact("api key 0123456789abcdef is not valid") == "api key *** is not valid"


def test_this_machines_own_token_may_have_any_form(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "my own secret\n")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "another one")
    assert redact("sent my own secret, another one") == "sent hf_***, hf_***"
    monkeypatch.setenv("HF_TOKEN", "a")
    assert redact("a cat") == "a cat"  # too short to be one


PROCESS = """
import logging, sys, threading, warnings
from sources.redact import redact_process
redact_process()
secret = sys.stdin.read()
log = logging.getLogger("library")
log.warning("sent %s", secret)
log.warning("%d", secret)
log.warning(ValueError(secret))
warnings.warn(secret)
def fail():
    try:
        raise KeyError(secret)
    except KeyError:
        raise OSError(f"no access with {secret}")
try:
    fail()
except OSError:
    log.exception("while reading")
thread = threading.Thread(target=fail, name=secret)
thread.start()
thread.join()
fail()
"""


@pytest.mark.parametrize("stored", [True, False])
def test_logs_warnings_and_tracebacks_show_no_secret(stored: bool, tmp_path: Path):
    """The token of `hf auth login` has no form at all, the other one that of a token."""
    secret = "open sesame, open" if stored else TOKEN
    if stored:
        (tmp_path / "token").write_text(secret)
    variables = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_TOKEN_PATH")}
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS],
        input=secret,
        env={**variables, "HF_HOME": str(tmp_path)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert secret not in ended.stderr and not ended.stdout
    assert ended.stderr.count("OSError: no access with hf_***") == 3 and "sent hf_***" in ended.stderr
    assert "UserWarning: hf_***" in ended.stderr and "In thread hf_***: Traceback" in ended.stderr
