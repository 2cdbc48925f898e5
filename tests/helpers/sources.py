"""Sources that fail."""

from collections import Counter

from sources.source import SourceError


class Flaky:
    """A real source that fails after so many documents, so many times, as a network does but not on demand."""

    def __init__(self, inner, documents: int, times: int, transient: bool = True):
        self.inner, self.documents, self.times, self.transient = inner, documents, times, transient
        self.name, self.num_shards = inner.name, inner.num_shards
        self.notices, self.counts = inner.notices, inner.counts

    def read(self, shard, cursor):
        for document in self.inner.read(shard, cursor):
            if self.documents <= 0 and self.times > 0:
                self.times -= 1
                raise SourceError("the connection was lost, token hf_abcDEF123", transient=self.transient)
            self.documents -= 1
            yield document


class Unreadable:
    """A source whose data is gone; only what names it is left."""

    def __init__(self, inner):
        self.name, self.num_shards = inner.name, inner.num_shards
        self.notices, self.counts = [], Counter()
        self._fingerprint, self._pin = inner.fingerprint(), inner.pin()

    def fingerprint(self):
        return self._fingerprint

    def pin(self):
        return self._pin

    def read(self, shard, cursor):
        raise SourceError("the data is gone")
        yield
