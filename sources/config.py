"""The `data` section of a preset: which sources, how they are mixed, which tokenizer.

Everything a preset can get wrong about data without touching a disk or a network is refused here, each with one
sentence. A source's name (in weights, logs and metrics) is its "name", its built-in name, or its dataset or path.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from sources.readers.endpoint import is_local
from sources.readers.fields import Template, compile_template, nearest

# Repositories that hold plain data files (no loading script) with a column `text`.
BUILTIN_SOURCES: dict[str, dict[str, str]] = {
    "wikipedia": {"type": "hf", "dataset": "wikimedia/wikipedia", "config": "20231101.en"},
    "openwebtext": {"type": "hf", "dataset": "Skylion007/openwebtext", "config": "plain_text"},
    "c4": {"type": "hf", "dataset": "allenai/c4", "config": "en"},
    "bookcorpus": {"type": "hf", "dataset": "rojagtap/bookcorpus"},
    "pile_subset": {"type": "hf", "dataset": "monology/pile-uncopyrighted-parquet"},
    "common_crawl": {"type": "hf", "dataset": "HuggingFaceFW/fineweb", "config": "sample-10BT"},
    "python_packages": {"type": "python_packages"},
}


def _has_home(path: str) -> str:
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"the home folder in {path!r} is not known here; write the whole path.") from None
    return path


LocalPath = Annotated[str, AfterValidator(_has_home)]


class Spec(BaseModel):
    """What all source specifications share."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None = Field(None, min_length=1)


class HubSpec(Spec):
    """A dataset in hub layout, on the hub or in a local folder, read by streaming."""

    type: Literal["hf"]
    dataset: LocalPath = Field(min_length=1)
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    text_field: str | None = None
    fields: list[str] | dict[str, str] | None = None
    format: str | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> "HubSpec":
        if self.text_field is not None and (self.fields is not None or self.format is not None):
            raise ValueError('"text_field" and "fields"/"format" exclude each other; keep one of them.')
        self.template()
        return self

    def template(self) -> Template:
        """How a row becomes a text."""
        if self.fields is None and self.format is None:
            return compile_template(None, [self.text_field or "text"])
        return compile_template(self.format, self.fields)

    @property
    def source_name(self) -> str:
        return self.name or self.dataset

    @property
    def folder(self) -> Path | None:
        """The local folder meant by `dataset`, or None when it names a repository on the hub."""
        return Path(self.dataset).expanduser() if is_local(self.dataset) else None


class PdfSpec(Spec):
    """A PDF file, or a folder searched for them."""

    type: Literal["pdf"]
    path: LocalPath = Field(min_length=1)

    @property
    def source_name(self) -> str:
        return self.name or self.path


class FilesSpec(Spec):
    """Text, source code, JSON lines and parquet files below a folder; `text_field` is for the latter two."""

    type: Literal["files"]
    path: LocalPath = Field(min_length=1)
    glob: str = Field("**/*", min_length=1)
    text_field: str = Field("text", min_length=1)

    @field_validator("text_field")
    @classmethod
    def _is_a_path(cls, text_field: str) -> str:
        compile_template(None, [text_field])
        return text_field

    @field_validator("glob")
    @classmethod
    def _names_files_below(cls, glob: str) -> str:
        parts = Path(glob).parts
        if Path(glob).is_absolute() or ".." in parts:
            raise ValueError(f'the pattern {glob!r} leaves the folder; put the folder into "path".')
        if not parts:
            raise ValueError(f'the pattern {glob!r} names no files; write one such as "**/*.md".')
        if any("**" in part and part != "**" for part in parts):  # which some versions of Python refuse
            raise ValueError(f'"**" in the pattern {glob!r} is not a folder of its own; write it as in "**/*.md".')
        return glob

    @property
    def source_name(self) -> str:
        return self.name or self.path


class PythonPackagesSpec(Spec):
    """The Python sources of the running interpreter: standard library and installed packages. Needs no network."""

    type: Literal["python_packages"]

    @property
    def source_name(self) -> str:
        return self.name or self.type


SPECS: dict[str, type[Spec]] = {
    "hf": HubSpec,
    "pdf": PdfSpec,
    "files": FilesSpec,
    "python_packages": PythonPackagesSpec,
}
SourceSpec = Annotated[HubSpec | PdfSpec | FilesSpec | PythonPackagesSpec, Field(discriminator="type")]


class TrainBPE(BaseModel):
    """Train a byte-level BPE of this many ids on the run's own text (256 bytes, the end mark, and merges)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    train_bpe: int = Field(ge=300, le=2**24)


Tokenizer = Annotated[
    Annotated[str, Tag("name")] | Annotated[TrainBPE, Tag("train_bpe")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "train_bpe"),
]


class DataConfig(BaseModel):
    """The `data` section."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    sources: tuple[SourceSpec, ...] = ("wikipedia",)
    tokenizer: Tokenizer = "gpt2"
    mix_strategy: Literal["round_robin", "sequential", "weighted"] = "round_robin"
    source_weights: dict[str, float] = Field({}, description="relative shares of the tokens; 1.0 where not given")
    min_text_length: int = Field(50, ge=0, strict=True, description="characters; shorter documents are passed over")
    deduplicate: bool = Field(True, strict=True, description="pass over documents that repeat a recent one of a source")
    decontaminate: tuple[LocalPath, ...] = Field(
        (), description="files or folders of texts; documents that share 13 words in a row with one are passed over"
    )
    shuffle: bool = Field(True, strict=True, description="another order of shards and rows in each pass")
    packing: Literal["best_fit", "pad"] = Field("best_fit", description="pad: one text a row, the rest is padding")
    document_mask: bool = Field(False, strict=True, description="attention stays inside a document; positions restart")
    num_workers: Literal["auto"] | Annotated[int, Field(strict=True, ge=0, le=64)] = Field(
        "auto", description="processes per rank that prepare data; 0: a thread; auto: a thread without a GPU"
    )
    retry_minutes: float = Field(10.0, ge=0, le=1440, description="how long a source may fail before it is dropped")
    cache: bool = Field(False, strict=True, description="keep packed rows on disk and read them in later runs")
    cache_max_gb: float = Field(20.0, gt=0, description="the least recently used sources are removed beyond this")
    cache_dir: LocalPath = Field("shard_cache/store", min_length=1, description="where the cache lies")

    @field_validator("tokenizer")
    @classmethod
    def _check_tokenizer_folder(cls, tokenizer: str | TrainBPE) -> str | TrainBPE:
        return _has_home(tokenizer) if isinstance(tokenizer, str) else tokenizer

    @field_validator("sources", mode="before")
    @classmethod
    def _expand_builtins(cls, sources: Any) -> Any:
        if not isinstance(sources, (list, tuple)):
            raise ValueError('"sources" is a list of built-in names and source objects, such as ["wikipedia"].')
        if not sources:
            raise ValueError('"sources" is empty; name at least one source, such as "wikipedia".')
        return tuple(_expand(source) for source in sources)

    @field_validator("sources")
    @classmethod
    def _unique_names(cls, sources: tuple[Spec, ...]) -> tuple[Spec, ...]:
        names = [spec.source_name for spec in sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'two sources are called "{name}"; give one of them another "name".')
        return sources

    @model_validator(mode="after")
    def _check_weights(self) -> "DataConfig":
        names = [spec.source_name for spec in self.sources]
        if self.source_weights and self.mix_strategy != "weighted":
            raise ValueError(
                f'"source_weights" has no effect with "mix_strategy": "{self.mix_strategy}"; '
                'set it to "weighted" or remove the weights.'
            )
        for name, weight in self.source_weights.items():
            if name not in names:
                raise ValueError(
                    f'"source_weights" names "{name}", which is no source here{nearest(name, names)}; '
                    f"the sources are {', '.join(names)}."
                )
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f'"source_weights" gives "{name}" the weight {weight}; a weight is a positive number.')
        return self

    def weights(self) -> dict[str, float]:
        """Each source's share of the tokens, relative to the others, in the configuration's order."""
        return {spec.source_name: self.source_weights.get(spec.source_name, 1.0) for spec in self.sources}


def _expand(source: Any) -> Any:
    """Turn a built-in name into its specification and refuse unknown names and types; objects pass as they are."""
    if isinstance(source, str):
        if source not in BUILTIN_SOURCES:
            raise ValueError(
                f'there is no built-in source "{source}"{nearest(source, BUILTIN_SOURCES)}; the built-in sources are '
                f'{", ".join(BUILTIN_SOURCES)}, and any other is an object such as {{"type": "hf", "dataset": "..."}}.'
            )
        return {**BUILTIN_SOURCES[source], "name": source}
    if isinstance(source, dict) and source.get("type") not in list(SPECS):  # a list: a type may not be hashable
        kind = source.get("type")
        problem = "has no type" if kind is None else f'has the unknown type "{kind}"{nearest(str(kind), SPECS)}'
        raise ValueError(f'a source {problem}; write "type": one of {", ".join(SPECS)}.')
    return source
