"""The tokenizer of a checkpoint as a GGUF vocabulary: tokens, types, special ids, chat template.

Told by the files' content: byte-level BPE (`bpe.py`) or SentencePiece (`spm.py`). Tokens added
later are laid over either, and the whole is padded to the rows of the embedding. Everything is read
from JSON and from the SentencePiece file itself; neither transformers nor tokenizers is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from llava_cli.errors import ModelInvalid
from llava_cli.models.folders import chat_template, read_json
from llava_convert.bpe import is_byte_level, read_bpe
from llava_convert.spm import read_spm
from llava_convert.tokens import ADDED_SCORE, Tokens

SPECIALS = ("bos", "eos", "unk", "pad")
KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""transformers' short names -> GGUF's tokenizer.ggml.*_token_id."""
NO_MERGES = ["[none] [none]"]
"""llama.cpp wants merges; this one never applies, because symbols start as single characters."""


@dataclass(frozen=True)
class Vocabulary:
    """All that a GGUF says about tokens."""

    model: str
    """`gpt2` (byte-level BPE) or `llama` (SentencePiece)."""
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None
    merges: list[str] | None
    specials: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    """None for BPE, where llama.cpp has no such thing."""
    chat_template: str | None
    notes: tuple[str, ...] = ()
    """What a person should know about it."""

    def write(self, writer: GGUFWriter) -> None:
        """Into a header."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types([int(kind) for kind in self.types])
        if self.merges is not None:
            writer.add_token_merges(self.merges or NO_MERGES)
        for name, key in KEYS.items():
            if name in self.specials:
                writer.add_uint32(f"tokenizer.ggml.{key}_token_id", self.specials[name])
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


@dataclass
class _Files:
    """The tokenizer's files, as far as the folder has them."""

    folder: Path
    tokenizer: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    specials: dict[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> _Files:
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                 "added_tokens.json")  # fmt: skip
        paths = [folder / name for name in names]
        return cls(folder, *(read_json(path) if path.is_file() else {} for path in paths))


def read_vocabulary(
    folder: Path, config: Mapping[str, Any], rows: int, template: str | None = None
) -> Vocabulary:
    """The vocabulary of a checkpoint whose embedding has `rows` rows.

    `template` is the chat template to store instead of the folder's own.
    """
    try:
        vocabulary = _read(_Files.read(folder), config, rows)
        return replace(vocabulary, chat_template=template or vocabulary.chat_template)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelInvalid(
            f"the tokenizer's files in {folder} are not of a known form ({error!r})",
            "fetch them again from where the model came from",
        ) from error


def _read(files: _Files, config: Mapping[str, Any], rows: int) -> Vocabulary:
    folder = files.folder
    sentencepiece = folder / "tokenizer.model"
    if files.tokenizer and is_byte_level(files.tokenizer):
        base = read_bpe(files.tokenizer)
    elif files.tokenizer or sentencepiece.is_file():
        base = read_spm(files.tokenizer, sentencepiece, files.config)
    else:
        raise ModelInvalid(
            f"{folder} holds neither tokenizer.json nor tokenizer.model",
            "fetch the tokenizer's files from where the model came from",
        )
    notes = list(base.notes)
    _lay_over(base, _added_tokens(files), rows, notes)
    _pad(base, rows)
    specials = _specials(files, config, base)
    add_bos, add_eos = _ends(files)
    return Vocabulary(
        model=base.model,
        pre=base.pre,
        tokens=base.tokens,
        types=base.types,
        scores=base.scores,
        merges=base.merges,
        specials=specials,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=base.add_space_prefix,
        chat_template=chat_template(folder),
        notes=tuple(notes),
    )


def _added_tokens(files: _Files) -> dict[int, tuple[str, bool]]:
    """Tokens laid over the base vocabulary: id -> (text, whether it is special)."""
    added: dict[int, tuple[str, bool]] = {}
    for text, number in files.added.items():
        added[int(number)] = (text, False)
    for key, token in (files.config.get("added_tokens_decoder") or {}).items():
        added[int(key)] = (str(token["content"]), bool(token.get("special")))
    for token in files.tokenizer.get("added_tokens") or []:
        added[int(token["id"])] = (str(token["content"]), bool(token.get("special")))
    return added


def _lay_over(
    base: Tokens, added: Mapping[int, tuple[str, bool]], rows: int, notes: list[str]
) -> None:
    """Put the added tokens in their places; those without a row in the embedding are left out."""
    for number, (text, special) in sorted(added.items()):
        if number >= rows:
            notes.append(f"token {text!r} ({number}) has no row in the embedding and is left out")
            continue
        _grow(base, number + 1)
        if base.types[number] in (TokenType.UNKNOWN, TokenType.BYTE):
            continue
        if base.types[number] == TokenType.CONTROL and base.tokens[number] == text:
            continue
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        if base.model == "llama" and not special:
            text = text.replace("\u2581", " ")  # llama.cpp looks for it in the text as it was typed
        base.tokens[number], base.types[number] = text, kind
        if base.scores is not None:
            base.scores[number] = ADDED_SCORE


def _pad(base: Tokens, rows: int) -> None:
    """Exactly one token for each row of the embedding, each text only once."""
    if len(base.tokens) > rows:
        raise ModelInvalid(
            f"the tokenizer has {len(base.tokens)} tokens, the embedding {rows} rows",
            "the tokenizer belongs to another model",
        )
    _grow(base, rows)
    twice = [text for text, count in Counter(base.tokens).items() if count > 1]
    if twice or "" in base.tokens:
        raise ModelInvalid(
            f"the tokenizer has the token {twice[0] if twice else ''!r} more than once or empty",
            "llama.cpp needs one id for each token's text",
        )


def _grow(base: Tokens, size: int) -> None:
    """Fill up with tokens that no text gives."""
    taken = set(base.tokens)
    for number in range(len(base.tokens), size):
        text = f"[PAD{number}]"
        while text in taken:
            text = f"[{text}]"
        base.tokens.append(text)
        base.types.append(TokenType.UNUSED)
        if base.scores is not None:
            base.scores.append(ADDED_SCORE)


def _specials(files: _Files, config: Mapping[str, Any], base: Tokens) -> dict[str, int]:
    """Ids of the special tokens: as the tokenizer's files name them, else as config.json does."""
    ids = {text: number for number, text in enumerate(base.tokens)}
    text_config = config.get("text_config") or {}
    found: dict[str, int] = {}
    for name in SPECIALS:
        token = files.config.get(f"{name}_token") or files.specials.get(f"{name}_token")
        text = token.get("content") if isinstance(token, Mapping) else token
        number = text_config.get(f"{name}_token_id", config.get(f"{name}_token_id"))
        if isinstance(number, list):
            number = number[0] if number else None
        if text is not None and text in ids:
            found[name] = ids[text]
        elif name in base.specials:
            found[name] = base.specials[name]
        elif isinstance(number, int) and 0 <= number < len(base.tokens):
            found[name] = number
    if "eos" not in found:
        raise ModelInvalid(
            "the tokenizer names no token that ends an answer (eos_token)",
            "give eos_token in tokenizer_config.json",
        )
    found.setdefault("bos", found["eos"])  # llama.cpp would take token 11 or 1 for it
    return found


def _ends(files: _Files) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before and EOS behind a text, by transformers' rules."""
    if not files.tokenizer:  # a bare SentencePiece file: Llama's rule
        config = files.config
        return bool(config.get("add_bos_token", True)), bool(config.get("add_eos_token", False))
    template = _template(files.tokenizer.get("post_processor"))
    middle = template.index("A")
    return middle > 0, middle < len(template) - 1


def _template(processor: Any) -> list[str]:
    """A post-processor's pieces for a single text: special tokens, and "A" for the text itself."""
    if not isinstance(processor, Mapping):
        return ["A"]
    if processor.get("type") == "Sequence":
        inner = [_template(p) for p in processor.get("processors") or []]
        return next((template for template in inner if len(template) > 1), ["A"])
    if processor.get("type") in ("RobertaProcessing", "BertProcessing"):
        return ["cls", "A", "sep"]
    pieces = processor.get("single") or [{"Sequence": {"id": "A"}}]
    return ["A" if "Sequence" in piece else "special" for piece in pieces]
