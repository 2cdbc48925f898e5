"""Presets: the schema of configs/*.json, reading them, and the sentences that say what is wrong with one."""

from engine.config.reading import CONFIGS, load_preset, parse_preset, preset_files, write_schema
from engine.config.schema import TOKENS_PER_RUN, Preset, TrainConfig

__all__ = [
    "CONFIGS",
    "TOKENS_PER_RUN",
    "Preset",
    "TrainConfig",
    "load_preset",
    "parse_preset",
    "preset_files",
    "write_schema",
]
