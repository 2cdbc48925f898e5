"""Rows to batches: lanes, prefetching, mixing, and the state that resumes right after a batch."""
