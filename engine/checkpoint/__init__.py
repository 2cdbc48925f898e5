"""Checkpoints: saving a generation, rotating the older ones, and loading the newest that is whole."""
