"""llama.cpp's tokenizer behind `tokenise.Vocabulary`."""

from __future__ import annotations

import ctypes
from typing import Any

from llava_cli.engines.gguf.binding import lib


class LlamaVocabulary:
    """llama.cpp's tokenizer (`tokenise.Vocabulary`)."""

    def __init__(self, vocab: Any) -> None:
        self.handle = vocab
        """llama.cpp's own."""
        self.size = int(lib.llama_vocab_n_tokens(vocab))
        bos = int(lib.llama_vocab_bos(vocab))
        self.bos: int | None = bos if lib.llama_vocab_get_add_bos(vocab) and bos >= 0 else None
        self._specials: dict[str, int | None] = {}
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._tokenise(text, parse_special=False)

    def special(self, text: str) -> int | None:
        """Id of one special token."""
        if text not in self._specials:
            ids = self._tokenise(text, parse_special=True)
            found = [i for i in ids if lib.llama_vocab_get_text(self.handle, i) == text.encode()]
            self._specials[text] = found[0] if len(ids) == 1 and found else None
        return self._specials[text]

    def piece(self, token: int) -> bytes:
        """UTF-8 bytes of a token; empty for special ones."""
        if token not in self._pieces:
            self._pieces[token] = self._piece(token, special=False)
        return self._pieces[token]

    def name(self, token: int) -> str:
        """What to call a token in a report."""
        return self._piece(token, special=True).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return bool(lib.llama_vocab_is_eog(self.handle, token))

    @property
    def marks(self) -> tuple[str, str]:
        """Texts of the tokens that begin and end a text."""
        begin, end = (int(f(self.handle)) for f in (lib.llama_vocab_bos, lib.llama_vocab_eos))
        return self._text(begin), self._text(end)

    def controls(self, text: str) -> frozenset[str]:
        """The special tokens that stand in a text."""
        ids = set(self._tokenise(text, parse_special=True))
        return frozenset(
            name
            for name in (self._text(i) for i in ids if lib.llama_vocab_is_control(self.handle, i))
            if name and name in text
        )

    def _text(self, token: int) -> str:
        """How the vocabulary writes a token; empty where there is none."""
        if token < 0:
            return ""
        return str((lib.llama_vocab_get_text(self.handle, token) or b"").decode("utf-8", "replace"))

    def _piece(self, token: int, *, special: bool) -> bytes:
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count = lib.llama_token_to_piece(self.handle, token, buffer, capacity, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count

    def _tokenise(self, text: str, *, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 2
        while True:
            ids = (lib.llama_token * capacity)()
            count = lib.llama_tokenize(
                self.handle, data, len(data), ids, capacity, False, parse_special
            )
            if count >= 0:
                return list(ids[:count])
            capacity = -count
