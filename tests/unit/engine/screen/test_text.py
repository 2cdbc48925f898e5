from engine.screen.text import is_news, one_line, plural, printable


def test_plurals():
    assert plural(1, "row") == "1 row" and plural(1024, "row") == "1,024 rows"
    assert plural(2, "process") == "2 processes" and plural(2, "micro-batch") == "2 micro-batches"


def test_nothing_that_a_terminal_obeys_is_printable():
    assert printable("a\u202egpj.exe\u2066\u200f\u061c\u200eb") == "a\ufffdgpj.exe\ufffd\ufffd\ufffd\ufffdb"
    assert printable("\U0001f468\u200d\U0001f469") == "\U0001f468\u200d\U0001f469"  # a joiner is no control
    assert printable("\x1b[2J\x9b\x07a\tb\nc") == "\ufffd[2J\ufffd\ufffda\tb\nc"


def test_line_breaks_and_tabs_become_spaces():
    assert one_line("a\r\n\t b\n\x1bc ") == "a b \ufffdc "


def test_of_a_thousand_epochs_some_are_news():
    said = [epoch for epoch in range(2, 70) if is_news({"event": "source", "what": "next_pass", "pass": epoch})]
    assert said == [2, 3, 4, 8, 16, 32, 64]
    assert is_news({"event": "source", "what": "next_pass"}), "of an older version"
    assert is_news({"event": "source", "what": "notice", "pass": 5})
