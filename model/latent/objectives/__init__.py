"""Objectives of the lookahead core that are rooms of their own."""
