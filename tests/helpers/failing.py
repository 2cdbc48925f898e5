"""A file system that fails or lacks something, by its calls: no disk here can be made to fail at one call."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest


class FailingDisk:
    """Lets os.link, os.replace and os.fsync work until call number `at` fails, and with `sticky` all later ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, sticky: bool = False):
        self.count = 0
        for name in ("link", "replace", "fsync"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name), at, sticky))

    def _failing(self, real: Callable[..., Any], at: int, sticky: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == at or (sticky and self.count > at):
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments, **options)

        return call


def without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
