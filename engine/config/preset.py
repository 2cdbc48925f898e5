"""The schema of configs/*.json: a name and the sections model, train, data and auxiliary.

A preset is parsed once, at the door, into frozen objects; whatever cannot be used is refused here in one sentence that
names the file, the key and the remedy. `write_schema` writes configs/preset.schema.json from the same classes, so that
an editor can complete keys while a preset is being written.
"""

import difflib
import json
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import PresetError
from model.config import AuxiliaryConfig, ModelConfig
from model.latent import require_room
from sources.config import DataConfig
from sources.redact import redact

CONFIGS = Path("configs")
SCHEMA_FILE = "preset.schema.json"


class TrainConfig(BaseModel):
    """How one run trains; batch sizes are in rows of `model.seq_length` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    per_gpu_batch_size: int = Field(32, ge=1, le=2**30, description="rows in one forward and backward pass of one rank")
    accumulation_steps: int = Field(1, ge=1, le=2**30, description="passes whose gradients make one optimizer step")
    probe_batch: bool = Field(
        False,
        description="find out which passes fit and are fastest; the rows of a step stay those of the two above",
    )
    train_tokens: int | None = Field(None, ge=1, description="accepted and overridden: a run is 100,000,000 tokens")
    eval_tokens: int = Field(500_000, ge=1, le=2**50, description="held-out tokens of one evaluation")
    eval_interval_tokens: int = Field(5_000_000, ge=1, le=2**50, description="training tokens between two evaluations")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for hidden matrices, beside AdamW for the rest"
    )
    learning_rate: float = Field(2e-3, gt=0, le=1, description="its peak")
    weight_decay: float = Field(0.1, ge=0, le=1, description="on matrices; never on norms, biases and embeddings")
    warmup_fraction: float = Field(0.02, ge=0, lt=1, description="share of a run spent warming up")
    final_learning_rate_fraction: float = Field(0.1, ge=0, le=1, description="learning rate at the end / its peak")
    gradient_clipping: float = Field(1.0, gt=0, description="largest norm of the trunk's gradients, and of the core's")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed's ZeRO stage")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where the hardware multiplies it natively, else fp32; weights are always fp32"
    )
    compile: Literal["auto", True, False] = Field(
        "auto", description="torch.compile; auto: where it works, and not at stage 3"
    )
    on_spike: Literal["log", "skip"] = Field(
        "log", description="a step whose loss is a spike is told of, or skipped as well"
    )
    max_skipped_steps: int = Field(10, ge=1, le=2**30, description="skipped steps in a row that are a divergence")
    on_divergence: Literal["stop", "rollback"] = Field(
        "stop", description="rollback: go back to the newest snapshot and on with other text"
    )
    save_interval_minutes: float = Field(10.0, gt=0, description="minutes between two snapshots")
    log_interval_seconds: float = Field(10.0, gt=0, description="seconds between two console lines")
    seed: int = Field(1234, ge=0, lt=2**63, description="of the initial weights, the order of the text and dropout")
    forbid_synchronization: bool = Field(
        False, description="for debugging: a pass that waits for the device ends the run"
    )
    deterministic: bool = Field(False, description="only kernels that give the same bits every time; slower on a GPU")


class Preset(BaseModel):
    """A whole preset. Every key has a default, so a file names only what it changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_file: str | None = Field(None, alias="$schema", description="for editors; ignored")
    name: str = Field(min_length=1, pattern=r"^[\w .+-]+$")
    description: str = Field("", description="for whoever reads the file")
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()

    @model_validator(mode="after")
    def _refuse_weights_without_effect(self) -> "Preset":
        if self.auxiliary.enable_adaptive_sources and self.data.mix_strategy == "sequential":
            raise ValueError(
                'auxiliary.enable_adaptive_sources has no effect with data.mix_strategy "sequential"; '
                'set the latter to "weighted" or the former to false.'
            )
        return self

    @model_validator(mode="after")
    def _require_room_to_look_ahead(self) -> "Preset":
        if self.auxiliary.looks_ahead:
            require_room(self.auxiliary, self.model.seq_length)
        return self


def preset_files(folder: Path = CONFIGS) -> list[Path]:
    """The presets in `folder` by file name; the JSON schema beside them is none."""
    return sorted(path for path in folder.glob("*.json") if path.name != SCHEMA_FILE)


def load_preset(path: str | Path) -> Preset:
    """Parses one preset. Raises PresetError (exit status 2) with a sentence for whatever cannot be used."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in preset_files(path.parent)], 1)
        raise PresetError(f"{path}: no such preset" + (f"; did you mean {near[0]}?" if near else ".")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PresetError(f"{path}: cannot be read ({error}).") from None
    try:
        values = json.loads(text, object_pairs_hook=_refuse_duplicates)
    except json.JSONDecodeError as error:
        raise PresetError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    except ValueError as error:
        raise PresetError(f"{path}: {error}") from None
    except RecursionError:
        raise PresetError(f"{path}: nested too deeply; a preset is sections of keys and values.") from None
    if not isinstance(values, dict):
        raise PresetError(f"{path}: a preset is a JSON object with the sections model, train, data and auxiliary.")
    return parse_preset({"name": path.stem, **values}, where=str(path))


def parse_preset(values: dict[str, Any], where: str = "preset") -> Preset:
    """Checks a preset's values; `where` is named in the sentence of the PresetError."""
    if secret := _secret(values):  # a preset is written into every snapshot and into metrics.jsonl
        raise PresetError(
            f"{where}: {redact(secret)}: holds a hub token or a password; take it out and set HF_TOKEN, or log in with "
            "hf auth login."
        )
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        raise PresetError(f"{where}: " + " ".join(_sentence(e, values) for e in _specific(error.errors()))) from None


def _secret(value: Any, key: str = "") -> str | None:
    """The key under which the first string with a secret stands (the key itself may be one), or None."""
    if isinstance(value, str):
        return key if redact(value) != value else None
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        inner = f"{key}.{name}" if key else str(name)
        if found := _secret(str(name), inner) or _secret(part, inner):
            return found
    return None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json.loads keeps the last of two equal keys without a word; a preset must not."""
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {key!r} stands twice in one section; remove one of them.")
        seen[key] = value
    return seen


def _specific(errors: list[Any]) -> list[Any]:
    """At most the first two errors: unions report one error per alternative, and a sentence names one cause."""
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    return (unknown or errors)[:2]


def _sentence(error: Any, values: Any) -> str:
    """One pydantic error as a sentence: where the value stands, what is wrong with it, what to do."""
    keys, schema = _walk(error["loc"], values)
    where = ".".join(str(key) for key in keys)
    if error["type"] == "extra_forbidden":
        known = list(schema)
        near = difflib.get_close_matches(str(keys[-1]), known, 1, cutoff=0.5)
        return f"{where}: unknown, " + (f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}.")
    if error["type"] == "missing":
        return f"{where}: is missing."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if error["type"] == "value_error":
        return message if message.startswith(where) or not where else f"{where}: {message}"
    if message.endswith("."):
        return f"{where}: {message}"
    message = re.sub(r"a valid dictionary or instance of \w+", "an object with keys of its own", message)
    given = json.dumps(error["input"], default=str)
    return f"{where}: {message}, not {given if len(given) < 60 else type(error['input']).__name__}."


def _walk(location: tuple[Any, ...], values: Any) -> tuple[list[Any], list[str]]:
    """Follows an error's location through the preset's own keys.

    pydantic puts the tag of a union's alternative into the location; those are no keys of the file and are left out.
    Also returns the known keys of the innermost section, for "did you mean".
    """
    keys: list[Any] = []
    section = known = Preset
    for depth, part in enumerate(location):
        present = isinstance(values, dict) and part in values
        if isinstance(part, str) and not present and (alternative := _alternative(section, part)):
            section = alternative
            continue
        if isinstance(part, str) and not present and depth < len(location) - 1:
            continue
        keys.append(part)
        known = section
        if isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields:
            section = section.model_fields[part].annotation
        if isinstance(values, dict):
            values = values.get(part)
        else:  # a tag does not index a list
            values = values[part] if isinstance(values, list) and isinstance(part, int) else None
    return keys, _known_keys(known)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic model that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list, Annotated):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def _known_keys(annotation: Any) -> list[str]:
    return [field.alias or key for model in _models(annotation) for key, field in model.model_fields.items()]


def _alternative(annotation: Any, tag: Any) -> type[BaseModel] | None:
    """The model of a union that `tag` names: by its "type", or by its class name."""
    for model in _models(annotation):
        kind = model.model_fields.get("type")
        if tag == model.__name__ or (kind is not None and tag in typing.get_args(kind.annotation)):
            return model
    return None


def write_schema(path: Path = CONFIGS / SCHEMA_FILE) -> None:
    """Writes the JSON schema that editors complete presets with; a test holds the file to these classes."""
    path.write_text(json.dumps(Preset.model_json_schema(by_alias=True), indent=1) + "\n", encoding="utf-8")
