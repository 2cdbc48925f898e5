"""The schema of configs/*.json, reading them, and the sentences that say what is wrong with one."""

from engine.config.preset import CONFIGS, Preset, TrainConfig, load_preset, parse_preset, preset_files, write_schema

__all__ = ["CONFIGS", "Preset", "TrainConfig", "load_preset", "parse_preset", "preset_files", "write_schema"]
