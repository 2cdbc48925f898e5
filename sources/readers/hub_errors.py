"""What the `datasets` library raises when it opens or reads a dataset, as a sentence that names the remedy."""

import re

from sources.config import HubSpec
from sources.readers.endpoint import explain
from sources.readers.fields import FieldError
from sources.source import SourceError

_CHOICES = re.compile(r"[Aa]vailable(?: splits| configs)?: \[(.*?)\]")


def explain_dataset(error: Exception, spec: HubSpec) -> SourceError:
    """Return the SourceError for an error of the library, of the hub's client, or of our own."""
    if isinstance(error, SourceError):
        return SourceError(error.reason, transient=error.transient)
    if isinstance(error, FieldError):
        return SourceError(f'{error} Name one of them in "text_field" or "fields".')
    dataset, message = spec.dataset, str(error)
    found = _CHOICES.search(message)
    choices = found[1] if found else ""
    if "Available splits" in message or "Bad split" in message:
        reason = f'{dataset} has no split "{spec.split}"; its splits are {choices}.'
    elif "Config name is missing" in message:
        reason = f'{dataset} needs a "config"; it has {choices or "several"}.'
    elif "BuilderConfig" in message and "not found" in message:
        reason = f'{dataset} has no config "{spec.config}"; its configs are {choices}.'
    elif "scripts are no longer supported" in message:
        reason = f"{dataset} is a loading script, which is no longer supported; use a copy that holds data files."
    elif spec.folder:
        reason = f"{dataset} cannot be read: {message.splitlines()[0] if message else type(error).__name__}"
    elif "data files" in message or "any data file" in message:
        reason = f"{dataset} holds no data files that can be read (such as parquet or JSON lines)."
    else:
        return explain(error, dataset)
    return SourceError(reason)
