"""Documents to rows: filter, split, tokenise, pack."""
