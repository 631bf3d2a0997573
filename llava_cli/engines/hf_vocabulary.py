"""transformers' fast tokenizers as a `tokenise.Vocabulary`, equal to llama.cpp's id for id.

Two things differ from calling the tokenizer: texts are not searched for special tokens, and a text
that begins with a space keeps it (transformers' SentencePiece tokenizers swallow the one that they
would put in front; sentencepiece itself and llama.cpp do not).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llava_cli.errors import MissingDependency, ModelInvalid

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a model's folder; runs no foreign code."""
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise MissingDependency(
            f"the tokenizer of {folder} needs a package that is missing: {error}",
            "pip install 'llava-cli[torch]'",
        ) from error
    except Exception as error:  # noqa: BLE001 - the Rust library raises bare Exception
        raise ModelInvalid(
            f"cannot read the tokenizer of {folder}: {error}", "download the model again"
        ) from error


class HfVocabulary:
    """The tokenizer of a llava-hf folder."""

    def __init__(self, tokenizer: Any, ends: Iterable[int] = ()) -> None:
        """`ends` are ids that end a turn, beside the tokenizer's own EOS."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelInvalid("the model's tokenizer is not a fast one", "add its tokenizer.json")
        self._plain = type(backend).from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()
        added = tokenizer.added_tokens_decoder
        self._added = {int(i): token.content for i, token in added.items()}
        self._hidden = {int(i) for i, token in added.items() if token.special}
        self._ids = {content: i for i, content in self._added.items()}
        self._ends = frozenset(ends) | {tokenizer.eos_token_id}
        self.bos = _bos(tokenizer, backend)
        self._bytes = _byte_table(backend)
        """Character -> byte of a byte-level BPE; None for SentencePiece."""
        self._swallows = self._ids_of(" a") == self._ids_of("a")

    @classmethod
    def from_folder(cls, folder: Path, ends: Iterable[int] = ()) -> HfVocabulary:
        """Read from tokenizer.json, or converted from tokenizer.model; runs no foreign code."""
        return cls(load_tokenizer(folder), ends)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        if self._swallows and text.startswith((" ", _SPACE)):
            text = " " + text
        return self._ids_of(text)

    def special(self, text: str) -> int | None:
        """Id of one special token."""
        return self._ids.get(text)

    def piece(self, token: int) -> bytes:
        """UTF-8 bytes of a token; empty for special ones and for ids without a token."""
        if token in self._hidden:
            return b""
        if token in self._added:
            return self._added[token].encode()
        text = self._plain.id_to_token(token)
        if text is None:
            return b""
        if self._bytes is not None:
            return bytes(self._bytes[character] for character in text)
        if match := _BYTE.fullmatch(text):
            return bytes([int(match[1], 16)])
        return str(text).replace(_SPACE, " ").encode()

    def name(self, token: int) -> str:
        """What to call a token in a report."""
        return self._added.get(token) or self.piece(token).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return token in self._ends

    def _ids_of(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _bos(tokenizer: Any, backend: Any) -> int | None:
    """The token that this tokenizer puts in front of every text."""
    ids = backend.encode("", add_special_tokens=True).ids
    bos = tokenizer.bos_token_id
    return int(bos) if bos is not None and ids[:1] == [bos] else None


def _byte_table(backend: Any) -> dict[str, int] | None:
    """GPT-2's characters for bytes, where the tokenizer decodes with them."""
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    kinds = [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))]
    if "ByteLevel" not in kinds:
        return None
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
