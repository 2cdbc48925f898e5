"""Experiment trackers: TensorBoard, trackio and W&B show the events of a run, beside metrics.jsonl (`train.log_to`)."""

from engine.trackers.background import THREAD, Trackers, require_packages

__all__ = ["THREAD", "Trackers", "require_packages"]
