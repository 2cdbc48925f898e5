"""One reader a kind of source: documents with a cursor after each."""
