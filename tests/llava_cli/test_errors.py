"""Every error says what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llava_cli.errors import LlavaError


def all_below(kind: type[LlavaError]) -> Iterator[type[LlavaError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from all_below(child)


@pytest.mark.parametrize("kind", sorted(all_below(LlavaError), key=str))
def test_every_error_has_a_remedy_even_where_none_is_given(kind: type[LlavaError]) -> None:
    error = kind("it is wrong")
    assert error.hint == kind.remedy
    assert error.hint and "\n" not in error.hint
    assert kind("it is wrong", "do this").hint == "do this"
