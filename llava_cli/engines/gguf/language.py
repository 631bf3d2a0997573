"""The language model of a GGUF: its vocabulary, its context and its memory of what was read.

One sequence. What stands in the context is kept as a list of cells, so that a later prompt with the
same beginning is not read again. Legend: V vocabulary, N positions, D width of an embedding row.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_cli.engines.gguf import binding
from llava_cli.engines.gguf.binding import lib
from llava_cli.errors import LlavaError, ModelInvalid, OutOfMemory

Logits = npt.NDArray[np.float32]
Cell = int | tuple[str, int]
"""What stands at one position: a token id, or a row of a picture's features."""

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
_FLASH_AUTO, _FLASH_OFF = -1, 0
_CHUNK = 512
"""Positions read in one call: small enough that Ctrl-C is heard in between."""
_GRAIN = 256
"""llama.cpp rounds contexts up to this."""
_ALL_LAYERS = -1


@dataclass(frozen=True)
class ContextSettings:
    """How a context computes and stores."""

    threads: int
    kv_type: str
    flash_attention: bool
    use_gpu: bool


class LanguageModel:
    """A text model with one growing context."""

    def __init__(self, path: Path, settings: ContextSettings, *, gpu: int, repack: bool) -> None:
        self._context: Any = None
        self._batches: dict[int, Any] = {}
        self._settings = settings
        binding.start()
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = _ALL_LAYERS if settings.use_gpu else 0
        parameters.main_gpu = gpu
        parameters.use_extra_bufts = repack
        binding.forget_errors()
        self.model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            if binding.ran_out_of_memory():
                raise OutOfMemory(
                    f"{path.name} does not fit into memory", "use a smaller quantisation"
                )
            reasons = "; ".join(binding.last_errors()[-2:]) or "llama.cpp gives no reason"
            raise ModelInvalid(f"cannot load {path}: {reasons}", "download or convert it again")
        self.vocabulary = LlamaVocabulary(lib.llama_model_get_vocab(self.model))
        self.width = int(lib.llama_model_n_embd_inp(self.model))
        self.limit = max(int(lib.llama_model_n_ctx_train(self.model)), 1)
        self.capacity = 0
        self.cells: list[Cell] = []

    def reserve(self, positions: int) -> None:
        """Make room for so many positions; what was read stays where that is possible."""
        if positions <= self.capacity:
            return
        parameters = lib.llama_context_default_params()
        wanted = max(positions, 2 * self.capacity)  # growing by doubling moves little
        parameters.n_ctx = min(-(-wanted // _GRAIN) * _GRAIN, max(self.limit, positions))
        parameters.n_batch = parameters.n_ubatch = _CHUNK
        parameters.n_threads = parameters.n_threads_batch = self._settings.threads
        parameters.type_k = parameters.type_v = KV_TYPES[self._settings.kv_type]
        flash = self._settings.flash_attention
        parameters.flash_attn_type = _FLASH_AUTO if flash else _FLASH_OFF
        parameters.offload_kqv = parameters.op_offload = self._settings.use_gpu
        parameters.no_perf = True
        binding.forget_errors()
        context = lib.llama_init_from_model(self.model, parameters)
        if not context:
            reasons = "; ".join(binding.last_errors()[-2:])
            if binding.ran_out_of_memory() or not reasons:
                raise OutOfMemory(
                    f"a context of {parameters.n_ctx} tokens does not fit into memory",
                    "ask with fewer pictures or a smaller --max-tokens",
                )
            raise ModelInvalid(f"llama.cpp cannot run this model: {reasons}", "use another model")
        if self._context:
            self._move(context)
        self._free_context()
        self._context = context
        self.capacity = min(int(lib.llama_n_ctx(context)), self.limit)

    def _move(self, context: Any) -> None:
        """Carry what was read over to a larger context."""
        size = lib.llama_state_seq_get_size(self._context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = lib.llama_state_seq_get_data(self._context, buffer, size, 0)
        if not written or not lib.llama_state_seq_set_data(context, buffer, written, 0):
            self.cells = []

    def keep(self, cells: Sequence[Cell]) -> int:
        """Forget all but the beginning that `cells` shares with what was read; its length."""
        shared = 0
        for mine, theirs in zip(self.cells, cells, strict=False):
            if mine != theirs:
                break
            shared += 1
        if shared < len(self.cells):
            memory = lib.llama_get_memory(self._context)
            if not lib.llama_memory_seq_rm(memory, 0, shared, -1):
                lib.llama_memory_clear(memory, True)
                shared = 0
            del self.cells[shared:]
        return shared

    def read_tokens(self, ids: Sequence[int]) -> Logits:
        """Read token ids behind what was read; the logits (V,) behind the last one."""
        logits: Logits | None = None
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            batch = self._batch(0, len(chunk))
            for i, token in enumerate(chunk):
                batch.token[i] = token
            logits = self._decode(batch, list(chunk), last=start + _CHUNK >= len(ids))
        if logits is None:
            raise ValueError("no tokens to read")
        return logits

    def read_rows(self, rows: npt.NDArray[np.float32], key: str, skip: int = 0) -> Logits:
        """Read a picture's features (N, D) from row `skip` on; the logits (V,) behind the last."""
        logits: Logits | None = None
        for start in range(skip, len(rows), _CHUNK):
            chunk = np.ascontiguousarray(rows[start : start + _CHUNK], np.float32)
            batch = self._batch(self.width, len(chunk))
            ctypes.memmove(batch.embd, chunk.ctypes.data, chunk.nbytes)
            cells: list[Cell] = [(key, start + i) for i in range(len(chunk))]
            logits = self._decode(batch, cells, last=start + _CHUNK >= len(rows))
        if logits is None:
            raise ValueError("no rows to read")
        return logits

    def _batch(self, width: int, count: int) -> Any:
        """A batch of llama.cpp, for ids (width 0) or rows; kept and used again."""
        if width not in self._batches:
            self._batches[width] = lib.llama_batch_init(_CHUNK, width, 1)
        batch = self._batches[width]
        batch.n_tokens = count
        return batch

    def _decode(self, batch: Any, cells: list[Cell], *, last: bool) -> Logits | None:
        place = len(self.cells)
        for i in range(batch.n_tokens):
            batch.pos[i] = place + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 0
        batch.logits[batch.n_tokens - 1] = int(last)
        binding.forget_errors()
        code = lib.llama_decode(self._context, batch)
        if code != 0:
            lib.llama_memory_seq_rm(lib.llama_get_memory(self._context), 0, place, -1)
            raise _decode_error(code)
        self.cells += cells
        if not last:
            return None
        logits = lib.llama_get_logits_ith(self._context, batch.n_tokens - 1)
        return np.ctypeslib.as_array(logits, (self.vocabulary.size,)).copy()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        self._free_context()
        for batch in self._batches.values():
            lib.llama_batch_free(batch)
        self._batches = {}
        if self.model:
            lib.llama_model_free(self.model)
            self.model = None

    def _free_context(self) -> None:
        if self._context:
            lib.llama_free(self._context)
        self._context = None
        self.capacity = 0


class LlamaVocabulary:
    """llama.cpp's tokenizer (`tokenise.Vocabulary`)."""

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self.size = int(lib.llama_vocab_n_tokens(vocab))
        bos = int(lib.llama_vocab_bos(vocab))
        self.bos: int | None = bos if lib.llama_vocab_get_add_bos(vocab) and bos >= 0 else None
        self._specials: dict[str, int | None] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._tokenise(text, parse_special=False)

    def special(self, text: str) -> int | None:
        """Id of one special token."""
        if text not in self._specials:
            ids = self._tokenise(text, parse_special=True)
            found = [i for i in ids if lib.llama_vocab_get_text(self._vocab, i) == text.encode()]
            self._specials[text] = found[0] if len(ids) == 1 and found else None
        return self._specials[text]

    def piece(self, token: int) -> bytes:
        """UTF-8 bytes of a token; empty for special ones."""
        return self._piece(token, special=False)

    def name(self, token: int) -> str:
        """What to call a token in a report."""
        return self._piece(token, special=True).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def _piece(self, token: int, *, special: bool) -> bytes:
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count = lib.llama_token_to_piece(self._vocab, token, buffer, capacity, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count

    def _tokenise(self, text: str, *, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 2
        while True:
            ids = (lib.llama_token * capacity)()
            count = lib.llama_tokenize(
                self._vocab, data, len(data), ids, capacity, False, parse_special
            )
            if count >= 0:
                return list(ids[:count])
            capacity = -count


def _decode_error(code: int) -> LlavaError:
    if binding.ran_out_of_memory():
        return OutOfMemory("the model ran out of memory while reading", "use a smaller model")
    if code == 1:
        return LlavaError("the model's context is full", "ask with a shorter text")
    reasons = "; ".join(binding.last_errors()[-1:])
    return LlavaError(f"llama.cpp failed to compute (code {code}) {reasons}".strip())
