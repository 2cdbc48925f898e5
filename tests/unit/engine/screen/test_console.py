"""What a run shows in a terminal."""

import copy
import re
from typing import Any

import pytest

from engine.screen.console import Console
from tests.helpers.run_event import RUN

EVALUATION: dict[str, Any] = {
    "event": "evaluation",
    **{"ce": 4.1234, "perplexity": 61.77, "bits_per_byte": 1.5, "tokens": 5000, "seconds": 0.5},
    "sources": {"wikipedia": {"ce": 4.25}, "c4": {"ce": 4.0}},
}


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]):
    """Prints an event; returns its lines."""

    def show(event: dict[str, Any]) -> list[str]:
        Console().show(event)
        return capsys.readouterr().out.splitlines()

    return show


def run_event(train: dict[str, Any] | None = None, **derived: Any) -> dict[str, Any]:
    event = copy.deepcopy(RUN)
    event["preset"]["train"].update(train or {})
    event["derived"].update(derived)
    return event


def test_a_run_begins_with_three_sentences(shown):
    assert shown(RUN) == [
        "Run 3 of tiny: 15.3M parameters, vocabulary 50,257, 1 process on CPU, 2 threads, 8 GiB.",
        "A step has 16 rows of 32 tokens: 2 micro-batches of 8 rows per process. Precision fp32, ZeRO stage 1.",
        "A token costs 93.1M FLOP (6 per weight of a matrix product, plus attention). MFU is unknown: no table has "
        "this device's peak.",
    ]


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (run_event(zero_stage=0), "Precision fp32, ZeRO stage 0 (1 with several processes)."),
        (run_event({"zero_stage": "auto"}, zero_stage=2), "Precision fp32, ZeRO stage 2 (auto)."),
        (run_event(precision="bf16", bf16_instructions="AMX"), "Precision bf16 with AMX, ZeRO stage 1."),
        (run_event({"accumulation_steps": 1}, world_size=2), "1 micro-batch of 8 rows per process."),
        (run_event(peak_flops=989e12), "MFU is relative to the data sheet's 989T FLOP/s."),
        (run_event({"train_tokens": 5}), "train.train_tokens 5 is overridden: a run is 100,000,000 tokens."),
        (
            run_event(world_size=3, rows_per_pass=9),
            "3 processes cannot share this checkpoint's 8 data lanes evenly: a micro-batch has 9 rows instead of 8, "
            "the others for padding (12% more to compute).",
        ),
        (run_event(idle_gpus=3), "Idle GPUs: 3; start with deepspeed main.py to use them all."),
        (run_event(held_out_tokens=0), "There is no validation set, so there are no evaluations."),
        (
            run_event(held_out_tokens=0, held_out_shortfalls={"a": "is not open", "b": "could not be read"}),
            "There is no validation set, so there are no evaluations: a is not open; b could not be read.",
        ),
        (run_event(held_out_tokens=4321), "The validation set has 4,321 of the 500,000 tokens requested"),
    ],
)
def test_what_a_run_says_of_its_machine_and_data(shown, event: dict[str, Any], sentence: str):
    assert sentence in "\n".join(shown(event))


def test_older_run_events_are_shown(shown):
    event = run_event()
    del event["derived"]["bf16_instructions"], event["derived"]["idle_gpus"]
    assert shown(event) == shown(RUN)


def test_a_step_is_one_line_that_begins_with_its_number(shown):
    figures = {"tokens": 5, "share": 0.1, "loss": 4.5, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 7.0}
    rest = {"data_wait": 0.0, "eta_seconds": 5.0, "sources": {}, "auxiliary": {"value": 0.25}, "core_left_out": 2}
    (line,) = shown({"event": "step", "step": 1200, **figures, **rest})
    assert re.match(r"^step +1,200 ", line) and "lookahead (value 0.25)" in line
    assert "the lookahead core's gradient was not finite in 2 steps" in line and "slow" not in line
    slow = {"slow_rank": {"rank": 3, "host": "gpu-[2]", "times_median": 1.84}}
    (line,) = shown({"event": "step", "step": 1200, **figures, **rest, **slow})
    assert line.endswith("rank 3 on gpu-[2] is slow: 1.8 times the median")


def test_an_evaluation_shows_a_sample_and_a_passage(shown):
    tokens = [
        {
            "token": token,
            "guesses": [[[" x", 0.5]], [[" y", 0.5]]],
            "expected_nll": {"4": 2.0},
            "realised_nll": {"4": 3.0},
        }
        for token in (" a", " b", " c", " d", " e")
    ]
    lines = shown({**EVALUATION, "sample": {"prompt": "Once", "text": " upon"}, "passage": tokens})
    assert lines[0].startswith(
        "validation  loss 4.1234  (wikipedia 4.250 c4 4.000)  perplexity 61.77  bits per byte 1.5000"
    )
    assert lines[1] == "sample: Once upon"
    assert lines[2] == (
        "lookahead: after ' a b c' it predicts ' x y', the text has ' d e'; loss of the next 4 tokens: predicted 2.00, "
        "actual 3.00"
    )


def test_texts_are_shown_as_they_are_without_secrets(shown):
    name = "[red] :smile: http://a:pass[word]@host"
    (line,) = shown({"event": "source", "name": name, "what": "notice", "message": "[/] closes nothing"})
    assert line == "source [red] :smile: http://***@host: [/] closes nothing"


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str]):
    console = Console(enabled=False)
    console.show(RUN)
    console.say("a")
    console.warn("b")
    console.error("c")
    assert not capsys.readouterr().out
