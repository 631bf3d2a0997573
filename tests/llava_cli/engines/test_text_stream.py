"""Streamed text: whole characters only, and no part of a stop text."""

from __future__ import annotations

import itertools

import pytest

from llava_cli.engines.text_stream import TextStream

TEXT = "Füße, 東京 🙂 – naïve"


def streamed(pieces: list[bytes], stops: tuple[str, ...] = (), lead: str = "") -> list[str]:
    stream = TextStream(stops, lead)
    return [*(stream.add(piece) for piece in pieces), stream.close()]


def test_characters_are_never_split() -> None:
    parts = streamed([bytes([byte]) for byte in TEXT.encode()])
    assert "".join(parts) == TEXT
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts)


def test_bytes_that_are_no_character_do_not_stall_the_stream() -> None:
    parts = streamed([b"a", b"\xff", b"b", b"\xf0\x9f", b"c"])
    assert parts[:3] == ["a", "\ufffd", "b"]
    assert "".join(parts) == "a\ufffdb\ufffdc"


def test_a_character_cut_off_at_the_end_is_replaced() -> None:
    assert streamed([b"ok\xf0\x9f\x99"]) == ["ok", "\ufffd"]


def test_no_part_of_a_stop_text_is_ever_shown() -> None:
    stops = ("###", "</s>", "\nUSER:")
    for stop in stops:
        data = f"answer{stop}more".encode()
        for first, second in itertools.combinations(range(1, len(data)), 2):
            stream = TextStream(stops)
            shown = ""
            for piece in (data[:first], data[first:second], data[second:]):
                shown += stream.add(piece)
                assert "answer".startswith(shown)
            assert shown + stream.close() == "answer"
            assert stream.stopped


def test_a_beginning_of_a_stop_text_that_was_none_comes_out() -> None:
    assert "".join(streamed([b"a##", b"b#", b"#"], ("###",))) == "a##b##"
    assert streamed([b"1 #", b" 2"], ("###",)) == ["1 ", "# 2", ""]


def test_the_first_stop_text_ends_the_answer() -> None:
    for pieces in ([b"xabc"], [b"xa", b"bc"], [b"x", b"a", b"b", b"c"]):
        assert "".join(streamed(pieces, ("b", "abc"))) == "xa"
        assert "".join(streamed(pieces, ("bc", "abc"))) == "x"
    stream = TextStream(("b",))
    assert [stream.add(b"ab"), stream.add(b"more"), stream.close()] == ["a", "", ""]


def test_stop_texts_of_several_bytes_per_character() -> None:
    stream = TextStream(("。",))
    assert [stream.add(bytes([byte])) for byte in "東。京".encode()][2] == "東"
    assert stream.stopped and stream.close() == ""


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([b" The", b" end"], "The end"),
        ([b"The"], "The"),
        ([b" ", b" two"], " two"),
        ([b" "], ""),
        ([b""], ""),
        ([b"", b" ", b"x"], "x"),
    ],
)
def test_the_lead_is_left_out_once(pieces: list[bytes], text: str) -> None:
    assert "".join(streamed(pieces, lead=" ")) == text


def test_a_lead_longer_than_one_character() -> None:
    assert "".join(streamed([b"A", b": x"], lead="A: ")) == "x"
    assert "".join(streamed([b"A", b"nd"], lead="A: ")) == "And"
