"""Speculative decoding: the drafter drafts, the model verifies."""
