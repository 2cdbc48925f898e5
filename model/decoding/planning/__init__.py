"""Planning: where the next token is uncertain, candidates are weighed by what follows them before one is written."""
