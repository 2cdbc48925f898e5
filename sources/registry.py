"""From specifications to open sources: what can be reached is opened, what cannot is named with its reason."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sources.config import DataConfig, FilesSpec, HubSpec, PdfSpec, PythonPackagesSpec, Spec
from sources.endpoint import unreachable, within
from sources.files import FilesSource
from sources.hub import HubSource
from sources.pdf import PdfSource
from sources.python_packages import PythonPackagesSource
from sources.source import JSON, Source, SourceError

OPENERS: dict[type[Spec], Callable[..., Source]] = {
    HubSpec: HubSource,
    PdfSpec: PdfSource,
    FilesSpec: FilesSource,
    PythonPackagesSpec: PythonPackagesSource,
}


class AllSourcesFailed(Exception):
    """No source is left to read; `reasons` says why, source by source."""

    def __init__(self, reasons: dict[str, str]):
        self.reasons = reasons
        super().__init__("Every source failed: " + "; ".join(f"{name}: {why}" for name, why in reasons.items()) + ".")


@dataclass
class OpenedSources:
    """The open sources in the configuration's order, and why the others are not open."""

    sources: dict[str, Source]
    failures: dict[str, str]

    def pins(self) -> dict[str, dict[str, JSON]]:
        """What `open_sources` needs to open the same data elsewhere."""
        return {name: source.pin() for name, source in self.sources.items()}

    def check(self) -> None:
        """Raise AllSourcesFailed when nothing is open."""
        if not self.sources:
            raise AllSourcesFailed(self.failures)


def open_sources(
    config: DataConfig, pins: dict[str, dict[str, JSON]] | None = None, *, only_pinned: bool = True
) -> OpenedSources:
    """Open every source; one that fails is reported in `failures` and does not stop the others.

    With `pins` the sources are opened as they were when they were pinned, and those without a pin stay closed (another
    rank could not open them), unless `only_pinned` is false (a restart, where a source may be back).
    """
    opened: dict[str, Source] = {}
    failures: dict[str, str] = {}
    for spec in config.sources:
        name = spec.source_name
        if pins is not None and only_pinned and name not in pins:
            failures[name] = "the first rank could not open it"
            continue
        try:
            opened[name] = OPENERS[type(spec)](spec, (pins or {}).get(name))
        except SourceError as error:
            failures[name] = error.reason
        except OSError as error:  # a folder or file that this user may not look at
            failures[name] = f"{error.filename or name} cannot be opened ({error.strerror or error})"
    return OpenedSources(opened, failures)


def probe(spec: Spec, timeout: float = 3.0) -> str | None:
    """Tell in at most `timeout` seconds whether a source looks usable: None, or a short reason why not.

    Nothing is loaded: a hub dataset costs one small request, a folder a look for one fitting file.
    """
    if isinstance(spec, HubSpec) and spec.folder is None:
        return unreachable("dataset", spec.dataset, timeout)
    if isinstance(spec, HubSpec):
        return _look(str(spec.folder), "**/*", timeout)
    if isinstance(spec, (PdfSpec, FilesSpec)):
        return _look(spec.path, spec.glob if isinstance(spec, FilesSpec) else "**/*.[pP][dD][fF]", timeout)
    return None


def _look(path: str, glob: str, timeout: float) -> str | None:
    root = Path(path).expanduser()

    def question() -> str | None:
        if root.is_file():
            return None
        if not root.is_dir():
            return f"{path} does not exist"
        found = any(file.is_file() for file in root.glob(glob))
        return None if found else f'{path} holds no file that matches "{glob}"'

    return within(timeout, question, f"{path} cannot be searched within {timeout:g} s")
