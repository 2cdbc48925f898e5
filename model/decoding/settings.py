"""What a caller may set when a model writes text. Wrong values are refused in one sentence each."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

MAX_TEMPERATURE = 1e30  # at which all tokens are equally likely
MAX_TOP_LOGPROBS = 100

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]  # (ids (1, t), scores (1, V)) -> scores, as in transformers


class Settings(TypedDict, total=False):
    """The keywords of `LanguageModel.generate` and `stream`; `GenerationSettings` explains them."""

    temperature: float | Literal["adaptive"]
    temperature_offset: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    no_repeat_ngram: int
    stop: str | Sequence[str]
    seed: int | None
    stop_at_eos: bool
    logprobs: int | None
    num_samples: int
    echo: bool
    logits_processors: Sequence[LogitsProcessor]
    num_beams: int
    length_penalty: float
    speculate: bool | Literal["auto", "typical"]
    plan: bool


@dataclass(frozen=True)
class GenerationSettings:
    """Checked settings. Raises ValueError, in one sentence, for a value that makes no sense."""

    max_new_tokens: int = 64
    temperature: float | Literal["adaptive"] = 1.0  # 0: greedy; "adaptive": by how uncertain the model is
    temperature_offset: float = 0.0  # added to the logarithm of an adaptive temperature
    top_p: float = 0.9  # the likeliest tokens whose probabilities add up to this; 1: all
    top_k: int = 0  # the k likeliest tokens; 0: all
    min_p: float = 0.0  # tokens with at least this share of the likeliest token's probability
    repetition_penalty: float = (
        1.0  # divides positive logits, multiplies negative ones, of tokens that occurred; 1: off
    )
    no_repeat_ngram: int = 0  # no n tokens in a row a second time, prompt included; 0: off
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    seed: int | None = None  # None: another text each time
    stop_at_eos: bool = True
    logprobs: int | None = None  # return log-probabilities: of the chosen tokens, and of this many of the likeliest
    num_samples: int = 1  # texts for each prompt; number j is what seed + j gives
    echo: bool = False  # the returned text, tokens and logprobs begin with the prompt's
    logits_processors: tuple[LogitsProcessor, ...] = field(default=())
    num_beams: int = 1  # more than 1: beam search, which needs temperature 0
    # With the drafts of a model that has a drafter: True: the same distribution; "auto": where that is faster here;
    # "typical": not the same, drafts that are likely enough stand too.
    speculate: bool | Literal["auto", "typical"] = False
    plan: bool = False  # weigh candidates by what follows them where the model is uncertain; needs temperature 0
    length_penalty: float = 1.0  # of beam search: log-probabilities are divided by the length to this power

    @classmethod
    def of(cls, max_new_tokens: int, settings: Mapping[str, Any]) -> "GenerationSettings":
        """Check keywords, among which there may be unknown ones."""
        known = [option.name for option in fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}."
                raise ValueError(f'there is no setting "{name}"; {hint}')
        values = dict(settings)
        stop = values.get("stop", ())
        values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        values["logits_processors"] = tuple(values.get("logits_processors", ()))
        return cls(max_new_tokens, **values)

    def __post_init__(self) -> None:
        self._check_whole("max_new_tokens", 1)
        self._check_whole("no_repeat_ngram", 0)
        self._check_whole("top_k", 0)
        self._check_whole("num_samples", 1)
        self._check_whole("num_beams", 1)
        if self.seed is not None:
            self._check_whole("seed", 0)
        if self.logprobs is not None:
            self._check_whole("logprobs", 0, MAX_TOP_LOGPROBS)
        for name in ("temperature", "temperature_offset", "top_p", "min_p", "repetition_penalty", "length_penalty"):
            value = getattr(self, name)
            if name == "temperature" and self.adaptive:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; give a number.")
        if not 0 <= self.number <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature!r}; give 0 (greedy), a number up to {MAX_TEMPERATURE:g}, or "
                '"adaptive".'
            )
        if self.temperature_offset and not self.adaptive:
            raise ValueError(
                'temperature_offset has an effect with temperature "adaptive" only; set that or leave it out.'
            )
        if not -3 <= self.temperature_offset <= 3:
            raise ValueError(f"temperature_offset is {self.temperature_offset!r}; give a number from -3 to 3.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}; give a number above 0 and up to 1.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p!r}; give a number from 0 (off) to 1.")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty!r}; give a number from 0.01 to 100.")
        if not -10 <= self.length_penalty <= 10:
            raise ValueError(f"length_penalty is {self.length_penalty!r}; give a number from -10 to 10.")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}; give a text, or a list of texts, that are not empty.")
        if not all(callable(processor) for processor in self.logits_processors):
            raise ValueError("logits_processors holds something that is no function; give functions (ids, scores).")
        self._check_beams()
        if self.speculate not in (False, True, "auto", "typical"):
            raise ValueError(f'speculate is {self.speculate!r}; give True, False, "auto" or "typical".')
        if self.speculate and (self.num_beams > 1 or self.logits_processors):
            other = "num_beams" if self.num_beams > 1 else "logits_processors"
            raise ValueError(f"speculate and {other} cannot be combined; leave one of them out.")
        self._check_plan()

    def _check_beams(self) -> None:
        if self.num_beams == 1:
            if self.length_penalty != 1:
                raise ValueError("length_penalty has an effect with num_beams above 1 only; set that or leave it out.")
            if self.num_samples > 1 and self.greedy:
                raise ValueError(
                    f"num_samples is {self.num_samples} with temperature 0, where all texts would be the same; "
                    "raise temperature or num_beams."
                )
            return
        if not self.greedy:
            raise ValueError(f"num_beams is {self.num_beams}; beam search draws nothing, so give temperature=0 too.")
        if self.num_samples > self.num_beams:
            raise ValueError(
                f"num_samples is {self.num_samples}, and num_beams {self.num_beams} finds no more than that."
            )

    def _check_plan(self) -> None:
        if not isinstance(self.plan, bool):
            raise ValueError(f"plan is {self.plan!r}; give True or False.")
        if not self.plan:
            return
        if not self.greedy:
            raise ValueError("plan draws nothing; give temperature=0 too.")
        others = {
            "num_beams": self.num_beams > 1,
            "logits_processors": self.logits_processors,
            f"speculate {self.speculate!r}": self.speculate in ("auto", "typical"),
        }
        for other, there in others.items():
            if there:
                raise ValueError(f"plan and {other} cannot be combined; leave one of them out.")

    def _check_whole(self, name: str, least: int, most: int = 2**63 - 1) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            range_ = f"{least} or more" if most >= 2**63 - 1 else f"from {least} to {most}"
            raise ValueError(f"{name} is {value!r}; give a whole number, {range_}.")

    @property
    def adaptive(self) -> bool:
        return self.temperature == "adaptive"

    @property
    def number(self) -> float:
        """The temperature that all tokens share; 1 where each has its own, by which its scores are divided before."""
        return 1.0 if isinstance(self.temperature, str) else self.temperature

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def generator(self, sample: int = 0) -> torch.Generator:
        """A new generator for text number `sample` of a prompt: seeded, or from the system's entropy."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed((self.seed + sample) % 2**63)
        return generator
