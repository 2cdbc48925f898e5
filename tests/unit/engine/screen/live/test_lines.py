"""Events as lines: short, one a line, and nothing in a name or a sample is taken for markup."""

import copy
from typing import Any

import pytest
from rich.text import Text

from engine.screen.live.lines import lines
from engine.screen.live.view import RunView
from tests.helpers.run_event import RUN
from tests.helpers.run_view import evaluation_event, step_event, view_of


def shown(event: dict[str, Any], view: RunView | None = None) -> list[str]:
    """The lines of an event, as they are shown."""
    return [Text.from_markup(line, emoji=False).plain for line in lines(event, view or RunView())]


def run_event(train: dict[str, Any] | None = None, **derived: Any) -> dict[str, Any]:
    event = copy.deepcopy(RUN)
    event["preset"]["train"].update(train or {})
    event["derived"].update(derived)
    return event


def test_a_run_begins_with_three_sentences():
    assert shown(RUN) == [
        "Run 3 of tiny: 15.3M parameters, vocabulary 50,257, 1 process on CPU, 2 threads, 8 GiB.",
        "A step has 16 rows of 32 tokens: 2 micro-batches of 8 rows per process. Precision fp32, ZeRO stage 1.",
        "A token costs 93.1M FLOP (6 per weight of a matrix product, plus attention). MFU is not shown: this "
        "device's peak is not known.",
    ]


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (run_event(active_parameters=9_100_000), "15.3M parameters, 9.10M of them read a token, vocabulary"),
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
def test_what_a_run_says_of_its_machine_and_data(event: dict[str, Any], sentence: str):
    assert sentence in "\n".join(shown(event))


def test_older_run_events_are_shown():
    event = run_event()
    del event["derived"]["bf16_instructions"], event["derived"]["idle_gpus"]
    assert shown(event) == shown(RUN)


def test_a_step_is_one_short_line():
    view = view_of(60)
    (line,) = shown(view.latest["step"], view)
    assert line.startswith("step 60  6.00M tokens (6.0%)  loss 3.3485  10.0k tokens/s  MFU 31.2%  lr 3.00e-04  about ")
    assert line.endswith(" left") and len(line) < 110
    sources = {f"/a/long/path/to/one/of/many/folders/{number}": 4.0 for number in range(40)}
    event = step_event(1_234_567, sources=sources, data_wait=0.25, core_left_out=3, auxiliary={"policy": 1.0})
    (line,) = shown(event, view)
    assert "data stall 25%" in line and "lookahead gradient not finite in 3 steps" in line and len(line) < 180


def test_a_rank_that_the_others_wait_for_is_named():
    slow = {"rank": 3, "host": "gpu-[2]", "times_median": 1.84}
    (line,) = shown(step_event(3, slow_rank=slow))
    assert "rank 3 on gpu-[2] is slow: 1.8 times the median" in line


def test_no_time_left_is_told_at_the_first_steps():
    view = view_of(5)
    (line,) = shown(view.latest["step"], view)
    assert "left" not in line and "about" not in line


def test_an_evaluation_shows_what_memory_is_worth():
    event = evaluation_event(3, 4.1, memory={"ce": 3.5, "ce_without": 3.75, "tokens": 12_345})
    assert "memory  loss behind it 3.5000  3.7500 without it, 12,345 tokens" in shown(event)


def test_an_evaluation_shows_a_sample_and_a_passage():
    tokens = [
        {
            "token": token,
            "guesses": [[[" x", 0.5]], [[" y", 0.5]]],
            "expected_nll": {"4": 2.0},
            "realised_nll": {"4": 3.0},
        }
        for token in (" a", " b", " c", " d", " e")
    ]
    event = evaluation_event(3, 4.1234, sample={"prompt": "Once", "text": " upon\n\na [red]time"}, passage=tokens)
    assert shown(event) == [
        "validation  loss 4.1234  perplexity 61.77  bits per byte 1.3745",
        "sample  Once upon a [red]time",
        "lookahead  after ' a b c' it predicts ' x y', the text has ' d e'; loss of the next 4 tokens: predicted 2.00, "
        "actual 3.00",
    ]


def test_texts_are_shown_as_they_are_without_secrets():
    name = "[red] :smile: http://a:pass[word]@host"
    (line,) = shown({"event": "source", "name": name, "what": "notice", "message": "[/] closes nothing"})
    assert line == "source [red] :smile: http://***@host: [/] closes nothing"
    epoch = {"event": "source", "name": "a", "what": "next_pass", "message": "a begins epoch 5", "pass": 5}
    assert shown(epoch) == [] and shown(epoch | {"pass": 4}) == ["source a begins epoch 5"]
    assert shown({"event": "advice", "message": "add [b]text[/]"}) == ["advice  add [b]text[/]"]


def test_a_stage_is_announced_unless_it_is_known_to_be_short():
    def stage(name: str, seconds: float | None = None) -> dict[str, Any]:
        return {"event": "stage", "name": name, "seconds": seconds}

    view = RunView()
    view.expected = {"tokenizer": 63.0, "model": 0.2}
    assert shown(stage("tokenizer"), view) == ["preparing the tokenizer (about 63 s)"]
    assert shown(stage("sources"), view) == ["opening the sources"]
    assert shown(stage("model"), view) == shown(stage("tokenizer", 63.0), view) == []
    assert shown(stage("evaluation"), view_of(3)) == [], "an evaluation says more when it is done"


def test_other_kinds_have_no_lines():
    assert shown({"event": "end", "how": "finished"}) == shown({"event": "unheard"}) == []
