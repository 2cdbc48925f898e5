"""Whether this Python can run the project: its version, and the packages of requirements.txt.

Imports nothing but the standard library, so that it can say what is missing where nothing else can be imported.
"""

from __future__ import annotations  # an older Python must be able to read this file

import importlib.util
import re
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
OLDEST = (3, 11)


class NotInstalled(ImportError):
    """A package is missing, or Python is too old; str() is a sentence with the remedy."""


def require_installed(requirements: Path = REQUIREMENTS) -> None:
    """Raise NotInstalled where a package of `requirements` cannot be found, or Python is older than OLDEST."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise NotInstalled(
            f"Forethought needs Python {oldest} or newer, and this is {version} ({sys.executable}). Start it with a "
            f"newer one, as in python{oldest} main.py."
        )
    missing = [name for name in _packages(requirements) if not is_installed(name)]
    if missing:
        names = f"package {missing[0]} is" if len(missing) == 1 else f"packages {', '.join(missing)} are"
        raise NotInstalled(
            f"The {names} not installed for this Python ({sys.executable}). Install what Forethought needs with "
            f"python -m pip install -r {requirements.name}."
        )


def is_installed(package: str) -> bool:
    """Whether a package can be found by the name under which it is imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _packages(requirements: Path) -> list[str]:
    """The names of the packages of a requirements file; each is imported under its own name."""
    try:
        lines = requirements.read_text(encoding="utf-8").splitlines()
    except OSError:  # a copy without it
        return []
    return [match[0].replace("-", "_") for line in lines if (match := re.match(r"[A-Za-z][\w-]*", line))]
