"""Turning next-token distributions into text."""
