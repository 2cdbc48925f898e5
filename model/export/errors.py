"""What a person is told when an export cannot be written or read."""


class ExportError(ValueError):
    """An export that cannot be written or read; the message is one or two sentences: what, where, what to do."""
