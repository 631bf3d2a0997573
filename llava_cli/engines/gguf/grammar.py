"""Answers that follow a JSON schema: llama.cpp's grammars, asked token by token.

The token that the model wants is tried first; only where the grammar forbids it is the whole
vocabulary looked through.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import llama_cpp
import numpy as np

from llava_cli.engines.gguf.binding import lib
from llava_cli.engines.gguf.schema import holdable
from llava_cli.engines.gguf.vocabulary import LlamaVocabulary
from llava_cli.engines.sampling import Logits
from llava_cli.errors import LlavaError, UsageError

_ANY_CHARACTER = 'char ::= [^"\\\\] |'
_PRINTED_CHARACTER = 'char ::= [^"\\\\\\x7F\\x00-\\x1F] |'
"""JSON wants control characters escaped, which the converter of llama-cpp-python forgets."""


@lru_cache(maxsize=8)
def gbnf_of(schema: str) -> str:
    """A JSON schema as llama.cpp's grammar; UsageError where it cannot be expressed."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        text = str(json_schema_to_gbnf(json.dumps(holdable(json.loads(schema)))))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise UsageError(
            f"the schema cannot be followed: {error or type(error).__name__}",
            "use objects, arrays, strings, numbers, booleans and enums",
        ) from error
    except RecursionError as error:
        raise UsageError("the schema refers to itself without end", "break the circle") from error
    text = text.replace(_ANY_CHARACTER, _PRINTED_CHARACTER)
    # prompt formats put a space in front of an answer; JSON does not mind
    text = re.sub(r"^root ::=", "llava-document ::=", text, flags=re.MULTILINE)
    return text + '\nroot ::= " "? llava-document\n'


class Grammar:
    """Where in a grammar one answer stands.

    llama.cpp counts bytes that are no UTF-8 as characters of a text; here they are forbidden.
    """

    def __init__(self, vocabulary: LlamaVocabulary, gbnf: str) -> None:
        self._sampler: Any = None
        self._vocabulary = vocabulary
        self._open = b""
        """The bytes of a character that is not whole yet."""
        self._sampler = lib.llama_sampler_init_grammar(vocabulary.handle, gbnf.encode(), b"root")
        if not self._sampler:
            raise UsageError("the schema cannot be followed", "write a simpler one")

    def allows(self, token: int) -> bool:
        """Whether the answer may go on with this token."""
        if not np.isfinite(self._applied(np.array([token]), np.zeros(1))[0]):
            return False
        return self._is_text(token)

    def masked(self, logits: Logits) -> Logits:
        """Logits (V,) with -inf for all that is forbidden."""
        found = self._applied(np.arange(len(logits)), np.asarray(logits, np.float32))
        for token in np.flatnonzero(np.isfinite(found)):
            if not self._is_text(int(token)):
                found[token] = -np.inf
        if not np.isfinite(found).any():
            raise LlavaError("the model has no token with which the schema could go on")
        return found

    def accept(self, token: int) -> None:
        """The answer goes on with this token."""
        lib.llama_sampler_accept(self._sampler, token)
        self._open = _unfinished(self._open + self._vocabulary.piece(token)) or b""

    def _is_text(self, token: int) -> bool:
        """Whether the answer's bytes stay UTF-8; the end of it comes behind a whole character."""
        if self._vocabulary.is_end(token):
            return not self._open
        return _unfinished(self._open + self._vocabulary.piece(token)) is not None

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self._sampler:
            lib.llama_sampler_free(self._sampler)
            self._sampler = None

    def __del__(self) -> None:
        self.close()  # of an answer that was abandoned

    def _applied(self, ids: Any, logits: Any) -> Logits:
        rows = np.zeros(len(ids), _ROW)
        rows["id"], rows["logit"] = ids, logits
        data = rows.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data, len(ids), -1, False)
        lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return np.asarray(rows["logit"], np.float32)


def _unfinished(data: bytes) -> bytes | None:
    """The bytes of the last character, if it is not whole; None where the bytes are no UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return None
    rest = decoder.getstate()[0]
    # The decoder does not refuse every beginning of which nothing valid can be made.
    return rest if not rest or any(map(_is_utf8, _endings(rest))) else None


def _endings(rest: bytes) -> Iterator[bytes]:
    for count in (1, 2, 3):
        yield rest + b"\x80" * count
        yield rest + b"\xbf" * count


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_ROW = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""struct llama_token_data"""
