"""The `data` section of a preset: which sources, how they are mixed, which tokenizer.

Whatever a preset can get wrong about data that shows without a disk or a network is refused here, each with one
sentence. A source's name (in weights, logs and metrics) is its "name", its built-in name, or its dataset or path.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.types import StrictBool, StrictInt

from sources.readers.fields import Template, compile_template, nearest
from sources.readers.hub.endpoint import is_local

# Repositories that hold plain data files (no loading script) with a column `text`. A revision is a commit known to hold
# them; a run's own pin, once made, comes first.
BUILTIN_SOURCES: dict[str, dict[str, Any]] = {
    "wikipedia": {
        "type": "hf",
        "dataset": "wikimedia/wikipedia",
        "config": "20231101.en",
        "revision": "b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
    },
    "openwebtext": {
        "type": "hf",
        "dataset": "Skylion007/openwebtext",
        "config": "plain_text",
        "revision": "79d93d786212f7344586290adb811d4ae6a1762c",
    },
    "c4": {
        "type": "hf",
        "dataset": "allenai/c4",
        "config": "en",
        "revision": "1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
    },
    "bookcorpus": {"type": "hf", "dataset": "rojagtap/bookcorpus", "join_rows": 128},  # a row is a sentence
    "pile_subset": {"type": "hf", "dataset": "monology/pile-uncopyrighted-parquet"},
    "common_crawl": {
        "type": "hf",
        "dataset": "HuggingFaceFW/fineweb",
        "config": "sample-10BT",
        "revision": "9bb295ddab0e05d785b879661af7260fed5140fc",
    },
    "python_packages": {"type": "python_packages"},
}
BUILTIN_LICENCES = {  # as the datasets' cards say
    "wikipedia": "CC BY-SA 3.0, GFDL",
    "openwebtext": "CC0 1.0 (the packaging; texts belong to their authors)",
    "c4": "ODC-BY, and Common Crawl's terms of use",
    "common_crawl": "ODC-BY 1.0, and Common Crawl's terms of use",
    "bookcorpus": "MIT, of the copy; the books have licences of their own",
    "pile_subset": '"other", as the card of its original, monology/pile-uncopyrighted, says',
}


def _check_home(path: str) -> str:
    if os.path.expanduser(path).startswith("~"):
        raise ValueError(f"the home folder in {path!r} is not known here; write the whole path.")
    return path


def _check_glob(glob: str) -> str:
    parts = Path(glob).parts
    split = [part for part in parts if "**" in part and part != "**"]  # which some versions of Python refuse
    if not parts or Path(glob).is_absolute() or ".." in parts or split:
        raise ValueError(f'the pattern {glob!r} must name files below the folder, as "**/*.md" does, "**" by itself.')
    return glob


def _check_text_field(field: str) -> str:
    compile_template(None, [field])
    return field


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FinalWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LocalPath = Annotated[str, Field(min_length=1), AfterValidator(_check_home)]
# Left out of a dump where it is not given: runs and caches know their sources by their dumps, which used to lack it.
JoinRows = Annotated[
    Annotated[int, Field(strict=True, ge=2, le=1000)] | None,
    Field(exclude_if=lambda value: value is None, description="rows in a row that make one text, joined by newlines"),
]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spec(Section):
    """What all source specifications share. `named_after` is the key that names a source without a "name"."""

    named_after: ClassVar[str] = "path"
    name: str | None = Field(default=None, min_length=1)

    @property
    def source_name(self) -> str:
        return self.name or getattr(self, self.named_after)


class HubSpec(Spec):
    """A dataset in hub layout, on the hub or in a local folder, read by streaming."""

    named_after: ClassVar[str] = "dataset"
    type: Literal["hf"]
    dataset: LocalPath
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    text_field: str | None = None
    fields: list[str] | dict[str, str] | None = None
    format: str | None = None
    join_rows: JoinRows = None

    @model_validator(mode="after")
    def _check_fields(self) -> "HubSpec":
        if self.text_field is not None and (self.fields is not None or self.format is not None):
            raise ValueError('"text_field" and "fields"/"format" exclude each other; keep one of them.')
        self.template()
        return self

    def template(self) -> Template:
        """Return how a row becomes a text."""
        one_field = self.fields is None and self.format is None
        return compile_template(self.format, [self.text_field or "text"] if one_field else self.fields)

    @property
    def known_revision(self) -> str | None:
        """The revision to read where no run is pinned to another: the preset's, or that of the built-in source.

        A built-in's stays out of the fields: what is known of a source by them does not change when it does.
        """
        return self.revision or _builtin(self.model_dump()).get("revision")

    @property
    def folder(self) -> Path | None:
        """The local folder that `dataset` means, or None when it names a repository on the hub."""
        return Path(self.dataset).expanduser() if is_local(self.dataset) else None


class PdfSpec(Spec):
    """A PDF file, or a folder searched for them."""

    type: Literal["pdf"]
    path: LocalPath


class FilesSpec(Spec):
    """Text, source code, JSON lines and parquet files below a folder; the latter two have text fields and rows."""

    type: Literal["files"]
    path: LocalPath
    glob: Annotated[str, AfterValidator(_check_glob)] = "**/*"
    text_field: Annotated[str, AfterValidator(_check_text_field)] = "text"
    join_rows: JoinRows = None


class PythonPackagesSpec(Spec):
    """The Python sources of the running interpreter: standard library and installed packages. Needs no network."""

    named_after: ClassVar[str] = "type"
    type: Literal["python_packages"]


SPECS = {"hf": HubSpec, "pdf": PdfSpec, "files": FilesSpec, "python_packages": PythonPackagesSpec}


def _builtin(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The built-in source of which `source` is the specification as JSON values; empty where it is none."""
    found = BUILTIN_SOURCES.get(str(source.get("name")), {})
    return found if all(found.get(key) == source.get(key) for key in ("type", "dataset", "config")) else {}


def builtin_licences(sources: Iterable[Any]) -> dict[str, str]:
    """The licences of those sources that are built-in, by name, as far as they are known.

    `sources` are specifications as JSON values, such as a snapshot's preset has.
    """
    names = [source["name"] for source in sources if isinstance(source, Mapping) and _builtin(source)]
    return {name: BUILTIN_LICENCES[name] for name in names if name in BUILTIN_LICENCES}


def _expand_builtin(source: Any) -> Any:
    """Turn a built-in name into its specification and refuse unknown names and types; objects pass as they are."""
    if isinstance(source, str):
        if source not in BUILTIN_SOURCES:
            known = f'the built-in ones are {", ".join(BUILTIN_SOURCES)}; others are objects with a "type"'
            raise ValueError(f'there is no built-in source "{source}"{nearest(source, BUILTIN_SOURCES)}; {known}.')
        return {key: value for key, value in BUILTIN_SOURCES[source].items() if key != "revision"} | {"name": source}
    if isinstance(source, dict) and (kind := str(source.get("type"))) not in SPECS:
        problem = f'has the unknown type "{kind}"{nearest(kind, SPECS)}' if "type" in source else "has no type"
        raise ValueError(f'a source {problem}; write "type": one of {", ".join(SPECS)}.')
    return source


def _check_list(sources: Any) -> Any:
    if not isinstance(sources, (list, tuple)) or not sources:
        raise ValueError('"sources" is empty or not a list; write one with built-in names or objects: ["wikipedia"].')
    return sources


AnySpec = HubSpec | PdfSpec | FilesSpec | PythonPackagesSpec
SourceSpec = Annotated[AnySpec, Field(discriminator="type"), BeforeValidator(_expand_builtin)]
DEFAULT_SOURCES: Any = ("wikipedia",)  # becomes a specification when it is validated


class TrainBPE(Section):
    """Train a byte-level BPE of this many ids on the run's own text (256 bytes, the end mark, and merges)."""

    train_bpe: int = Field(ge=300, le=2**24)


Tokenizer = Annotated[
    Annotated[LocalPath, Tag("name")] | Annotated[TrainBPE, Tag("train_bpe")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "train_bpe"),
]


class DataConfig(Section):
    """The `data` section."""

    model_config = ConfigDict(validate_default=True)
    sources: Annotated[tuple[SourceSpec, ...], BeforeValidator(_check_list)] = DEFAULT_SOURCES
    tokenizer: Tokenizer = "gpt2"
    mix_strategy: Literal["round_robin", "sequential", "weighted"] = "round_robin"
    source_weights: dict[str, Weight] = Field(default={}, description="relative shares of tokens; 1.0 where not given")
    final_source_weights: dict[str, FinalWeight] = Field(
        default={}, description="those for the end of a run; a source that is not given is then read no more"
    )
    final_fraction: float = Field(default=0.1, gt=0, lt=1, description="share of a run that final_source_weights have")
    min_text_length: StrictInt = Field(default=50, ge=0, description="characters; shorter documents are filtered out")
    long_text_length: StrictInt = Field(
        default=0, ge=0, description="characters; shorter ones too, in the last part of train.seq_length_schedule"
    )
    deduplicate: StrictBool = Field(default=True, description="filter out repeats of a source's recent documents")
    decontaminate: tuple[LocalPath, ...] = Field(
        default=(), description="files or folders; documents that share 13 words in a row with them are filtered out"
    )
    shuffle: StrictBool = Field(default=True, description="another order of shards and rows in each epoch")
    packing: Literal["best_fit", "pad"] = Field(default="best_fit", description="pad: one text a row, then padding")
    document_mask: StrictBool = Field(default=False, description="attention stays inside a document; positions restart")
    num_workers: Literal["auto"] | Annotated[int, Field(strict=True, ge=0, le=64)] = Field(
        default="auto", description="processes per rank that prepare data; 0: a thread; auto: a thread without a GPU"
    )
    retry_minutes: float = Field(default=10.0, ge=0, le=1440, description="a source that fails for longer is dropped")
    cache: StrictBool = Field(default=False, description="keep packed rows on disk and read them in later runs")
    cache_max_gb: float = Field(default=20.0, gt=0, description="above it, the least recently used source is removed")
    cache_dir: LocalPath = Field(default="shard_cache/store", description="a folder of the cache's own")

    @model_validator(mode="after")
    def _check_names(self) -> "DataConfig":
        names = Counter(spec.source_name for spec in self.sources)
        for name, number in names.items():
            if number > 1:
                raise ValueError(f'two sources are called "{name}"; give one of them another "name".')
        if self.source_weights and self.mix_strategy != "weighted":
            remedy = 'set that to "weighted" or remove the weights'
            raise ValueError(f'"source_weights" has no effect with "mix_strategy": "{self.mix_strategy}"; {remedy}.')
        for key in ("source_weights", "final_source_weights"):
            for name in getattr(self, key):
                if name not in names:
                    known = f"{nearest(name, names)}; the sources are {', '.join(names)}"
                    raise ValueError(f'"{key}" names "{name}", which is no source here{known}.')
        self._check_final_weights()
        return self

    def _check_final_weights(self) -> None:
        final = self.final_source_weights
        if final and self.mix_strategy == "sequential":
            raise ValueError('"final_source_weights" has no effect with "mix_strategy": "sequential"; leave it out.')
        if final and not any(final.values()):
            raise ValueError('"final_source_weights" has zeros alone; give the sources to be read a larger one.')
        if not final and self.final_fraction != DataConfig.model_fields["final_fraction"].default:
            raise ValueError('"final_fraction" has no effect without "final_source_weights"; give those too.')

    def weights(self) -> dict[str, float]:
        """Each source's share of the tokens, relative to the others, in the configuration's order."""
        return {spec.source_name: self.source_weights.get(spec.source_name, 1.0) for spec in self.sources}
