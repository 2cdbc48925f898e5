"""What is said where Python is too old or a package is missing."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from engine.installed import NotInstalled, is_installed, require_installed
from tests.helpers.text import REPOSITORY


def test_nothing_is_said_where_all_is_there():
    require_installed()


def test_missing_packages_are_named_with_the_remedy(tmp_path: Path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# what it needs\ntorch>=2\nno-such-package==1  # pinned\nneither_this\n-r other.txt\n")
    with pytest.raises(NotInstalled) as failure:
        require_installed(requirements)
    sentence = str(failure.value)
    assert sentence.startswith("The packages no_such_package, neither_this are not installed for this Python (")
    assert sentence.endswith("Install what Forethought needs with python -m pip install -r requirements.txt.")


def test_a_python_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(NotInstalled, match=r"^Forethought needs Python 3.11 or newer, and this is 3.10.13 \("):
        require_installed()


def test_a_copy_without_requirements_can_be_imported(tmp_path: Path):
    require_installed(tmp_path / "requirements.txt")


@pytest.mark.parametrize(("name", "found"), [("torch", True), ("no_such_package", False), ("no.such.package", False)])
def test_what_counts_as_installed(name: str, found: bool):
    assert is_installed(name) == found


def test_main_says_so_in_an_empty_environment(tmp_path: Path):
    venv.create(tmp_path / "empty")
    command = [str(tmp_path / "empty/bin/python"), "-E", "-s", str(REPOSITORY / "main.py")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and ended.stderr == ""
    assert ended.stdout.startswith("The packages deepspeed, torch, transformers, ")
