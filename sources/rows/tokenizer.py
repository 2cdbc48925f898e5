"""Step 4 of a text's way: tokenizers, loaded or trained here (byte-level BPE).

A tokenizer.json may ask for truncation, padding or special tokens: all of that is switched off. A text that contains
"<|endoftext|>" is encoded as these characters and never ends a document. tiktoken encodes where it was checked to give
the same ids.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import tiktoken
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sources.config import TrainBPE
from sources.readers.hub.endpoint import ask, explain, is_local, is_offline
from sources.redact import redact
from sources.retries import Retries
from sources.rows.fast_encoder import EDGES, encoding_of
from sources.source import SourceError, first_line
from storage import refuse_special

TOKENIZER_FILE = "tokenizer.json"
MOST_BYTES = 256_000_000  # of that file; those of large multilingual models have 40 MB
END_OF_TEXT = "<|endoftext|>"
FAST_CHARACTERS = 16 * 1024  # tiktoken takes more than linear time for a long text without white space
REMEMBERED_CHARACTERS = 2**24  # of texts whose ids are kept in memory; four times what a small source holds
END_CANDIDATES = (END_OF_TEXT, "</s>", "<eos>", "[SEP]")  # in this order, when no end token is declared


class TokenizerError(ValueError):
    """A tokenizer cannot be loaded or trained; the message is a sentence for the user."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError for a panic of the tokenizers' libraries, which is no Exception: no handler would see it."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its class cannot be imported
            raise
        raise RuntimeError(str(error)) from None


class TextTokenizer:
    """A `tokenizers.Tokenizer` with an end-of-text id and a padding id.

    `vocab_size` is the highest id plus one. Raises TokenizerError where there are no ids.
    """

    def __init__(self, tokenizer: Tokenizer, eos_id: int, pad_id: int | None = None):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # special tokens in a text are text
        self.tokenizer = tokenizer
        self.eos_id = eos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self.vocab_size:
            raise TokenizerError("it has no ids")
        self._fast: tiktoken.Encoding | None = None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return each text's ids (uint32), without special tokens, whole; half a surrogate pair becomes U+FFFD.

        Raises SourceError where one cannot be encoded: a run then goes on with the other sources.
        """
        if self._fast is not None:
            with contextlib.suppress(Exception), panics_as_errors():  # what tiktoken cannot encode, the library may
                # Not encode_to_numpy: it looks for special tokens too, which costs more than going through a list.
                return [
                    np.array(self._fast.encode_ordinary(text), dtype=np.uint32)
                    if len(text) <= FAST_CHARACTERS
                    else self._encode_by_library([text])[0]
                    for text in texts
                ]
        try:
            with panics_as_errors():
                return self._encode_by_library(texts)
        except Exception as error:  # the library raises bare Exceptions
            raise SourceError(f"the tokenizer fails on one of its texts ({first_line(error)})") from error

    def use_fast_encoder(self, texts: Sequence[str]) -> str | None:
        """Encode with tiktoken from now on if it gives the same ids for `texts` and EDGES.

        Returns a sentence to announce, or None when the library goes on encoding. Texts above FAST_CHARACTERS do not
        count, since the library encodes those.
        """
        self._fast = None
        short = [text for text in texts if len(text) <= FAST_CHARACTERS]
        encoding = encoding_of(self.tokenizer) if short else None
        if encoding is None:
            return None
        try:
            by_library = self.encode_batch([*EDGES, *short])
            self._fast = encoding
            equal = all(map(np.array_equal, by_library, self.encode_batch([*EDGES, *short])))
        except SourceError:  # the pipeline meets the same text and says so
            equal = False
        if not equal:
            self._fast = None
            return None
        megabytes = sum(len(text.encode("utf-8", "replace")) for text in short) / 1e6
        return f"tiktoken encodes here, proved equal on {len(short):,} texts ({megabytes:.1f} MB)"

    @property
    def is_fast(self) -> bool:
        """Whether tiktoken encodes."""
        return self._fast is not None

    def problem(self) -> str | None:
        """Return why this tokenizer cannot encode every text, as the rest of a sentence, or None."""
        try:
            with panics_as_errors():
                encoded = self._encode_by_library(EDGES)
        except Exception as error:  # the library raises bare Exceptions
            remedy = 'use one with an unknown token, or a byte-level one such as "gpt2"'
            return f"cannot encode every text ({first_line(error)}); {remedy}"
        return None if any(map(len, encoded)) else "gives no ids for any text; use another one"

    def encodes_as(self, tokenizer_json: str) -> bool:
        """Whether the tokenizer of this tokenizer.json gives the same ids: what only adds special tokens may differ."""
        try:
            theirs = TextTokenizer.from_json(tokenizer_json, self.eos_id).to_json()
        except TokenizerError:
            return False
        ours, theirs = json.loads(self.to_json()), json.loads(theirs)
        return {**ours, "post_processor": None} == {**theirs, "post_processor": None}

    def _encode_by_library(self, texts: Sequence[str]) -> list[np.ndarray]:
        encode = self.tokenizer.encode_batch_fast  # fast: without offsets
        try:
            encodings = encode(list(texts), add_special_tokens=False)
        except TypeError:  # raised for a string that is not valid Unicode
            encodings = encode(list(map(_without_surrogates, texts)), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special tokens are shown. Raises TokenizerError where the library fails."""
        try:
            with panics_as_errors():
                return self.tokenizer.decode(list(ids), skip_special_tokens=False)
        except RuntimeError as error:
            raise TokenizerError(f"the tokenizer cannot decode its own ids ({first_line(error)})") from error

    def to_json(self) -> str:
        """Return the tokenizer.json of this tokenizer, which `from_json` reads."""
        return self.tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str, eos_id: int, pad_id: int | None = None, *, fast: bool = False) -> "TextTokenizer":
        """Rebuild a tokenizer from `to_json`'s text; raises TokenizerError.

        `fast` says that `use_fast_encoder` succeeded for it elsewhere, so tiktoken encodes without another check.
        """
        try:
            with panics_as_errors():
                rebuilt = cls(Tokenizer.from_str(text), eos_id, pad_id)
        except Exception as error:  # the library raises bare Exceptions
            raise TokenizerError(f"The tokenizer's JSON text cannot be read: {error}") from error
        if fast:
            rebuilt._fast = encoding_of(rebuilt.tokenizer)
        return rebuilt

    def __reduce__(self) -> tuple:
        return partial(TextTokenizer.from_json, fast=self.is_fast), (self.to_json(), self.eos_id, self.pad_id)


class RememberingEncoder:
    """Encodes a text once: of a small source, every epoch holds the same ones.

    Each rank makes all rows of such a source, and would otherwise encode as much as all ranks train on.
    """

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._known: dict[str, np.ndarray] = {}
        self._characters = 0  # of what is known

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return what the tokenizer's method does."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = dict(zip(new, self._tokenizer.encode_batch(new), strict=True))
        ids = [self._known[text] if text in self._known else found[text] for text in texts]
        if self._characters < REMEMBERED_CHARACTERS:
            self._known |= found
            self._characters += sum(map(len, new))
        return ids


def load_tokenizer(name: str, retries: Retries | None = None) -> TextTokenizer:
    """Load a tokenizer from the hub (or its cache) or from a local folder; raises TokenizerError.

    `retries` says how long a hub that is busy or cannot be reached is tried again. Whether the tokenizer can be used is
    another question: see TextTokenizer.problem.
    """
    while True:
        try:
            return _load(name)
        except SourceError as error:
            try:
                (retries or Retries(name, 0.0)).wait(error)
            except SourceError:
                remedy = 'name another, or write {"train_bpe": 16384} to train one on the run\'s own text.'
                raise TokenizerError(f'data.tokenizer: "{name}" cannot be loaded: {error.reason}; {remedy}') from error


def _load(name: str) -> TextTokenizer:
    """Raises SourceError where the name or the hub does not give it, else TokenizerError."""
    from transformers import AutoTokenizer  # takes seconds to import; a run with its own BPE never needs it

    where = f'data.tokenizer: "{name}"'
    # Asked first: transformers takes minutes to report an endpoint that does not answer, and says less.
    if (failure := _failure(name, timeout=10.0)) is not None:
        raise failure
    folder = Path(name).expanduser() if is_local(name) else None
    local_only = folder is not None or is_offline() or _is_cached(name)
    try:
        with panics_as_errors():
            loaded = AutoTokenizer.from_pretrained(
                str(folder.absolute()) if folder else name, local_files_only=local_only
            )
    except Exception as error:  # OSError, ValueError, KeyError or ImportError
        if not local_only and (failure := explain(error, name)).transient:
            raise failure from error
        reason = redact(first_line(error))
        if folder and not (folder / TOKENIZER_FILE).exists():
            reason = f"that folder holds no {TOKENIZER_FILE}"
        raise TokenizerError(f"{where} cannot be loaded: {reason}; correct the name or the folder.") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TokenizerError(f'{where} has no fast version ({TOKENIZER_FILE}); use another such as "gpt2".')
    eos_id = _end_of_text_id(backend, loaded.sep_token) if loaded.eos_token_id is None else loaded.eos_token_id
    return TextTokenizer(backend, eos_id, loaded.pad_token_id)


def train_bpe(texts: Iterator[str], vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE of at most `vocab_size` ids on `texts`; raises TokenizerError when there are none.

    Half a surrogate pair, which JSON can escape, becomes U+FFFD as in `encode_batch`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    first = next(texts, None)
    if first is None:
        raise TokenizerError("data.tokenizer: there is no text to train a tokenizer on; check the sources.")
    tokenizer.train_from_iterator(map(_without_surrogates, chain([first], texts)), trainer)
    return TextTokenizer(tokenizer, _end_of_text_id(tokenizer, None))


def tokenizer_available(spec: str | TrainBPE, timeout: float = 3.0) -> str | None:
    """Return None, or in at most `timeout` seconds a short reason why a tokenizer cannot be loaded."""
    failure = None if isinstance(spec, TrainBPE) else _failure(spec, timeout)
    return failure and failure.reason


def _failure(name: str, timeout: float) -> SourceError | None:
    if is_local(name):
        problem = _folder_problem(name)
        return SourceError(problem) if problem else None
    try:
        if _is_cached(name):
            return None
    except HFValidationError as error:
        return explain(error, name)
    if is_offline():
        return SourceError(f"HF_HUB_OFFLINE is set, and {name} is neither in the cache nor a folder here")
    failure = ask("model", name, timeout)
    if failure is None or failure.transient:
        return failure
    return SourceError(f"there is no folder of this name here, and {failure.reason}")


def _folder_problem(name: str) -> str | None:
    """Why no tokenizer can be in a local folder, as a short reason, or None."""
    folder = Path(name).expanduser()
    try:
        if not folder.is_dir():
            return f"{name} is no folder" if folder.exists() else f"the folder {name} does not exist"
        refuse_special(folder.iterdir())
        if (folder / TOKENIZER_FILE).exists() and (folder / TOKENIZER_FILE).stat().st_size > MOST_BYTES:
            return f"{folder / TOKENIZER_FILE} has more than {MOST_BYTES // 10**6} MB"
    except OSError as error:
        return f"{error.filename or name} cannot be opened ({error.strerror or error})"
    return None


def _end_of_text_id(tokenizer: Tokenizer, separator: str | None) -> int:
    """Return the id of the token that ends a text best, when none is declared; adds one when there is none."""
    if all(tokenizer.token_to_id(token) is None for token in END_CANDIDATES):
        tokenizer.add_special_tokens([END_OF_TEXT])
    ids = (tokenizer.token_to_id(token) for token in (separator, *END_CANDIDATES) if token)
    return next(found for found in ids if found is not None)


def _is_cached(name: str) -> bool:
    """Whether the hub's cache holds this tokenizer, so that it loads without a network.

    Raises HFValidationError for what cannot be a repository's name.
    """
    configuration = try_to_load_from_cache(name, "tokenizer_config.json")  # None: never asked for
    is_known = configuration is not None or is_offline()
    return isinstance(try_to_load_from_cache(name, TOKENIZER_FILE), str) and is_known


def _without_surrogates(text: str) -> str:
    """Join surrogate pairs, and replace halves by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
