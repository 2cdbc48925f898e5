"""The text of PDF files, read in a sandbox."""
