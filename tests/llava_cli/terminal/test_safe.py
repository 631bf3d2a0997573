"""Nothing that a model or a file name says can steer a terminal."""

from __future__ import annotations

import pytest

from llava_cli.terminal.safe import VisibleStream, one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\x00b\x08c\x7f", "a\\x00b\\x08c\\x7f"),
        ("safe\rgone", "safe\\rgone"),
        ("\u202etxt.gpj", "\\u202etxt.gpj"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("\udcff", "\\udcff"),
        ("a\u2028b", "a\\u2028b"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text", ["two\nlines\tand a tab", "[/INST] [red]x[/red]", "Füße 東京 👩‍👧 می‌خواهم", "a\\x1b"]
)
def test_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_every_character_is_harmless() -> None:
    ranges = (range(0x3000), range(0xD800, 0xE000), range(0xFF00, 0x10000), range(0xE0000, 0xE0100))
    everything = "".join(chr(code) for codes in ranges for code in codes)
    left = set(visible(everything))
    controls = {chr(code) for code in (*range(32), *range(0x7F, 0xA0))} - {"\t", "\n"}
    assert not left & controls
    assert not left & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
    visible(everything).encode("utf-8")


def test_a_message_is_one_line() -> None:
    assert one_line("a\nb\tc\r\x1b") == "a\\nb\\tc\\r\\x1b"


def test_windows_line_end_split_between_pieces() -> None:
    stream = VisibleStream()
    pieces = ["one\r", "\ntwo", "\r", "three", "\x1b", "[31m\r"]
    shown = "".join(stream.feed(piece) for piece in pieces) + stream.close()
    assert shown == "one\ntwo\\rthree\\x1b[31m\\r"
