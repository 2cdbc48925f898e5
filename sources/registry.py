"""From specifications to open sources: opens what can be reached, and says why the others are not open."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from shard_cache import ShardCache
from sources.amounts import SAMPLE_CHARACTERS, Amount
from sources.caching import description
from sources.config import DataConfig, FilesSpec, HubSpec, PdfSpec, PythonPackagesSpec, SourceSpec, Spec
from sources.readers.files import FilesSource
from sources.readers.hub.endpoint import cached_folder, is_offline, unreachable, within
from sources.readers.hub.reader import HubSource
from sources.readers.pdf.reader import PdfSource
from sources.readers.python_packages import PythonPackagesSource
from sources.retries import Announce, Retries, read_on, silent
from sources.rows.filters import Filters, text_hash
from sources.rows.pipeline_config import SMALL_SOURCE
from sources.source import Source, SourceError, SourceGone
from storage import JSON, digest

OPENERS: dict[type[Spec], Callable[..., Source]] = {
    HubSpec: HubSource,
    PdfSpec: PdfSource,
    FilesSpec: FilesSource,
    PythonPackagesSpec: PythonPackagesSource,
}
REMEDIES = {  # of what is counted where nothing is left to train on
    "binary files": "save Word documents and the like as text or PDF",
    "rows without text": 'name a column that has text in "text_field" or "fields"',
    "shorter than min_text_length": "lower data.min_text_length, or join rows with join_rows",
}


class AllSourcesFailed(Exception):
    """No source is left to read; `reasons` says why, source by source."""

    def __init__(self, reasons: dict[str, str]):
        self.reasons = reasons
        # A path's reason often begins with the path, by which its source is named.
        named = (why if why.startswith(name) else f"{name}: {why}" for name, why in reasons.items())
        each = "; ".join(why.removesuffix(".") for why in named)
        super().__init__(f"Every source failed: {each}.")


class Pin(TypedDict):
    """What reopens a source with the same data, on another rank or after a restart."""

    source: Any  # Source.pin(), which only the source looks into
    small: bool  # all lanes share one chain of its blocks


class CachedPin(Pin):
    """What the shard cache knows of a source, so that it need not be opened."""

    num_shards: int
    fingerprint: JSON


@dataclass
class OpenedSources:
    """The open sources in the configuration's order, why the others are not open, and which are small."""

    sources: dict[str, Source]
    failures: dict[str, str]
    small: set[str] = field(default_factory=set)
    amounts: dict[str, Amount] = field(default_factory=dict)  # of the small ones that were read whole at this start

    def pins(self) -> dict[str, Pin]:
        """Return what `open_sources` needs to open the same data elsewhere."""
        return {name: {"source": source.pin(), "small": name in self.small} for name, source in self.sources.items()}

    def check(self) -> None:
        """Raise AllSourcesFailed when nothing is open."""
        if not self.sources:
            raise AllSourcesFailed(self.failures)

    def without(self, name: str, reason: str) -> "OpenedSources":
        """Return the same without a source that cannot be read any more."""
        kept = {other: source for other, source in self.sources.items() if other != name}
        return OpenedSources(kept, {**self.failures, name: reason}, self.small, self.amounts)


class LazySource:
    """A source that the shard cache knows: opened when something is asked for that the cache does not hold."""

    def __init__(self, name: str, known: CachedPin, open_source: Callable[[], Source]):
        self.name = name
        self.num_shards = known["num_shards"]
        self.notices: list[str] = []
        self.counts: Counter[str] = Counter()
        self._known, self._open = known, open_source
        self._source: Source | None = None

    def pin(self) -> JSON:
        return self._known["source"]

    def fingerprint(self) -> JSON:
        return self._known["fingerprint"]

    def read(self, shard: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        if self._source is None:
            self._source = self._open_now()
        yield from self._source.read(shard, cursor)

    def _open_now(self) -> Source:
        try:
            source = self._open()
        except SourceError as error:
            reason = f"more of it is needed than the cache holds: {error.reason}"
            rest = {"patience": error.patience, "retry_after": error.retry_after}
            raise SourceError(reason, transient=error.transient, **rest) from error
        if digest(source.fingerprint()) != digest(self.fingerprint()):
            remedy = "start again, or remove its folder from the cache"
            raise SourceError(f"{self.name} is not what it was when it was cached; {remedy}")
        source.notices[:0] = self.notices
        self.notices, self.counts = source.notices, source.counts
        return source


def open_sources(
    config: DataConfig,
    pins: Mapping[str, Pin] | None = None,
    *,
    only_pinned: bool = True,
    cache: ShardCache | None = None,
    announce: Announce = silent,
) -> OpenedSources:
    """Open every source; one that fails is reported in `failures` and does not stop the others. `announce` is told of
    what is tried again.

    With `pins` the sources are opened as they were when they were pinned, and those without a pin stay closed (another
    rank could not open them), unless `only_pinned` is false (a restart, where a source may be back). What `cache`
    knows of a repository, or of a source that is gone, stands in for it, which is opened only when it is needed.
    """
    opened = OpenedSources({}, {})
    for spec in config.sources:
        name = spec.source_name
        if pins is not None and only_pinned and name not in pins:
            opened.failures[name] = "the first rank could not open it"
            continue
        try:
            source, small, amount = _open(spec, (pins or {}).get(name), config, cache, announce)
        except SourceError as error:
            opened.failures[name] = error.reason
        except OSError as error:  # a folder or file without permission to read it
            opened.failures[name] = f"{error.filename or name} cannot be opened ({error.strerror or error})"
        else:
            opened.sources[name] = source
            opened.small |= {name} if small else set()
            opened.amounts |= {name: amount} if amount else {}
    return opened


def _open(
    spec: SourceSpec, pin: Pin | None, config: DataConfig, cache: ShardCache | None, announce: Announce
) -> tuple[Source, bool, Amount | None]:
    """Open one source; also returns whether it is small, and how much it holds where that was counted."""
    on_hub = isinstance(spec, HubSpec) and spec.folder is None
    known = _cached_pin(spec, pin, config, cache) if on_hub else None
    start = known or pin
    if known is not None and "commit" in known["source"]:  # which cannot change
        return _cached_source(spec, known), (pin or known)["small"], None
    retries = Retries.before_training(spec.source_name, config.retry_minutes, announce)
    while True:
        try:
            source = OPENERS[type(spec)](spec, start["source"] if start else None)
            if pin:
                return source, pin["small"], None
            amount = _count_if_small(source, config, retries)
            return source, amount is not None, amount
        except SourceGone as error:
            known = known or _cached_pin(spec, pin, config, cache)
            if known is None:
                raise
            source = _cached_source(spec, known)
            source.notices.append(f"its cached rows are used: {error.reason}")
            return source, (pin or known)["small"], None
        except SourceError as error:
            retries.wait(error)


def _cached_pin(spec: SourceSpec, pin: Pin | None, config: DataConfig, cache: ShardCache | None) -> CachedPin | None:
    """Return the newest that the cache knows of a source as it was pinned, or of the source where it has no pin."""
    found: list[CachedPin] = []
    if cache is not None:
        found = cache.pins(description(spec, config))
        if isinstance(spec, HubSpec):  # once the folder is gone, its name may look like a repository's
            found += cache.pins(description(spec, config, is_folder=True))
    return next((known for known in found if pin is None or pin["source"] == known["source"]), None)


def _cached_source(spec: SourceSpec, known: CachedPin) -> LazySource:
    return LazySource(spec.source_name, known, partial(OPENERS[type(spec)], spec, known["source"]))


def _count_if_small(source: Source, config: DataConfig, retries: Retries) -> Amount | None:
    """Return how much text to train on a source holds, or None if it is SMALL_SOURCE characters or more: reading stops
    there, once it has met a usable text. Raises SourceError where it holds none."""
    filters, characters = Filters(config.min_text_length), 0
    num_bytes, sample = 0, ""
    reasons: Counter[str] = Counter()
    for shard in range(source.num_shards):
        for text, _ in read_on(source, shard, retries):
            reason = filters.reject(text, text_hash(text)) or ""
            reasons[reason] += 1
            characters += len(text)
            if characters >= SMALL_SOURCE and reasons[""]:
                return None
            if not reason:
                num_bytes += len(text.encode("utf-8", "replace"))
                sample += text if len(sample) < SAMPLE_CHARACTERS else ""
    if not (found := reasons.pop("", 0)):
        reasons.update(source.counts)
        why = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items()) or "it is empty"
        remedies = [remedy for reason, remedy in REMEDIES.items() if reason in reasons]
        sentences = [*source.notices, "; ".join([f"it holds no text to train on ({why})", *remedies])]
        raise SourceError("; ".join(sentence.removesuffix(".") for sentence in sentences))
    source.notices.append(f"it is small, with {found:,} text{'s' if found > 1 else ''} to train on")
    return Amount(num_bytes, sample[:SAMPLE_CHARACTERS])


def probe(spec: Spec, timeout: float = 3.0) -> str | None:
    """Return None, or in at most `timeout` seconds a short reason why a source does not look usable.

    Nothing is loaded: a hub dataset costs one small request, a folder a search for one matching file.
    """
    if isinstance(spec, HubSpec) and spec.folder is None:
        return _look_into_cache(spec) if is_offline() else unreachable("dataset", spec.dataset, timeout)
    if isinstance(spec, HubSpec):
        return _look(str(spec.folder), "**/*", timeout)
    if isinstance(spec, (PdfSpec, FilesSpec)):
        return _look(spec.path, spec.glob if isinstance(spec, FilesSpec) else "**/*.[pP][dD][fF]", timeout)
    return None


def _look_into_cache(spec: HubSpec) -> str | None:
    try:
        cached_folder(spec.dataset, spec.revision)
    except SourceError as error:
        return error.reason
    return None


def _look(path: str, glob: str, timeout: float) -> str | None:
    root = Path(path).expanduser()

    def question() -> str | None:
        try:
            if root.is_file():
                return None
            if not root.is_dir():
                return f"{path} is neither a file nor a folder" if root.exists() else f"{path} does not exist"
            found = any(file.is_file() for file in root.glob(glob))
        except OSError as error:
            return f"{error.filename} cannot be opened ({error.strerror or error})"
        return None if found else f'{path} holds no file that matches "{glob}"'

    return within(timeout, question, f"{path} cannot be searched within {timeout:g} s")
