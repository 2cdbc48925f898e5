"""Tokens to text as they are decided: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one row. What might begin a stop string is held back until it is known whether it does; bytes at the
    end that are no whole character are left out."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str] = ()):
        self.stopped = False  # a stop string came; the text has ended before it
        self._tokenizer, self._stop = tokenizer, stop
        # The decoder reads the prompt, so that spaces join correctly; a final U+FFFD would look like half a character.
        known = list(prompt_ids)
        if tokenizer.decode(known).endswith("\N{REPLACEMENT CHARACTER}"):
            known = []
        self._decoder = DecodeStream(ids=known, skip_special_tokens=True)
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is decided with one more token."""
        piece = self._decoder.step(self._tokenizer, token)
        if not piece:
            return ""
        text = self._held + piece
        found = [(place + len(stop), place) for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:  # the first to be complete, however the text is cut into tokens
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[end:]
        return text[:end]

    def end(self) -> str:
        """The text that was held back, when no more tokens come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
