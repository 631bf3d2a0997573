"""What a language model has read: sequences of cells, and the reading itself.

What stands at each position is known as a list of cells, so that a prompt with the same beginning
is not read again. Every reading either happens whole or leaves the sequences as they were.
Legend: V vocabulary, N positions, D width of an embedding row.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_cli.engines.gguf import binding
from llava_cli.engines.gguf.binding import lib
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.engines.gguf.language import LanguageModel
from llava_cli.engines.gguf.layout import Cell, Tile, advance, is_inside, position
from llava_cli.errors import LlavaError, ModelInvalid, OutOfMemory

Logits = npt.NDArray[np.float32]
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
FLASH_AUTO, FLASH_OFF, FLASH_ON = -1, 0, 1
_GRAIN = 256
"""llama.cpp rounds contexts up to this."""
_ABORTED = 2


@dataclass(frozen=True)
class ContextSettings:
    """How a context computes and stores."""

    threads: int
    kv_type: str
    flash_attention: int
    """FLASH_AUTO, FLASH_OFF or FLASH_ON."""
    use_gpu: bool
    ubatch: int = 512
    """Positions computed in one go."""


class Context:
    """Some sequences that one model reads, each with its own cells."""

    def __init__(
        self,
        model: LanguageModel,
        settings: ContextSettings,
        interrupt: Interrupt,
        *,
        sequences: int = 2,
        unified: bool = True,
    ) -> None:
        """`unified` sequences share cells that were copied; otherwise each has its own room."""
        self._context: Any = None
        self._batches: dict[int, Any] = {}
        self._model = model
        self._settings = settings
        self._interrupt = interrupt
        self._sequences = sequences
        self._unified = unified
        self.limit = model.limit
        """Positions of one sequence at most."""
        self.capacity = 0
        """Cells of one sequence for which there is room."""
        self.cells: list[list[Cell]] = [[] for _ in range(sequences)]
        self._next = [0] * sequences
        """The position behind the cells."""
        self._batch_size = self._together = settings.ubatch

    def reserve(self, cells: int, tiles: Sequence[Tile] = ()) -> None:
        """Make room for so many cells a sequence and for these tiles to be read in one go.

        What was read stays where possible.
        """
        batch = max((tile.count for tile in tiles if tile.whole), default=0)
        together = max((tile.count for tile in tiles if not tile.causal), default=0)
        fits = batch <= self._batch_size and together <= self._together
        if cells <= self.capacity and fits:
            return
        self._batch_size = max(self._batch_size, batch)
        self._together = max(self._together, together)
        most = max(cells, 2 * self.capacity) if cells > self.capacity else self.capacity
        try:
            context = self._made(most)  # doubling moves little
        except OutOfMemory:
            if most <= cells:
                raise
            context = self._made(cells)
        if self._context:
            self._move(context)
        self._free_context()
        self._context = context
        self.capacity = min(int(lib.llama_n_ctx_seq(context)), self.limit)

    def _made(self, positions: int) -> Any:
        """A context of llama.cpp with so many positions a sequence."""
        settings = self._settings
        room = min(-(-positions // _GRAIN) * _GRAIN, max(self.limit, positions))
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = room if self._unified else room * self._sequences
        parameters.n_seq_max = self._sequences
        parameters.kv_unified = self._unified
        parameters.n_batch, parameters.n_ubatch = self._batch_size, self._together
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        parameters.type_k = parameters.type_v = KV_TYPES[settings.kv_type]
        parameters.flash_attn_type = settings.flash_attention
        parameters.offload_kqv = parameters.op_offload = settings.use_gpu
        parameters.no_perf = True
        parameters.abort_callback = self._interrupt.callback
        parameters.abort_callback_data = self._interrupt.data
        binding.forget_errors()
        context = lib.llama_init_from_model(self._model.model, parameters)
        if context:
            return self._adapted(context)
        reasons = "; ".join(binding.last_errors()[-2:])
        if binding.ran_out_of_memory() or not reasons:
            raise OutOfMemory(
                f"a context of {parameters.n_ctx} tokens does not fit into memory",
                "ask with fewer pictures or a smaller --max-tokens",
            )
        raise ModelInvalid(f"llama.cpp cannot run this model: {reasons}", "use another model")

    def _adapted(self, context: Any) -> Any:
        """The context, computing with the model's adapter if it has one."""
        if self._model.adapter is None:
            return context
        adapters = (lib.llama_adapter_lora_p_ctypes * 1)(
            ctypes.cast(self._model.adapter, lib.llama_adapter_lora_p_ctypes)
        )
        if lib.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) != 0:
            lib.llama_free(context)
            raise ModelInvalid("llama.cpp cannot put the adapter on this model", "merge it first")
        return context

    def _move(self, context: Any) -> None:
        """Carry what was read over to a larger context."""
        for sequence, cells in enumerate(self.cells):
            if not cells:
                continue
            state = self.state(sequence)
            data = (ctypes.c_uint8 * len(state)).from_buffer(state)
            if not lib.llama_state_seq_set_data(context, data, len(state), sequence):
                self._forgotten(sequence, 0)

    def keep(self, cells: Sequence[Cell], sequence: int = 0) -> int:
        """Forget all but the beginning that `cells` shares with what was read; its length."""
        mine = self.cells[sequence]
        shared = 0
        for old, new in zip(mine, cells, strict=False):
            if old != new:
                break
            shared += 1
        while is_inside(mine, shared) or is_inside(cells, shared):
            shared -= 1
        if shared < len(mine) and not self._remove(sequence, shared):
            self.forget(sequence)
            shared = 0
        return shared

    def forget(self, sequence: int = 0) -> None:
        """Empty a sequence."""
        if self.cells[sequence]:
            self._remove(sequence, 0)

    def _remove(self, sequence: int, start: int) -> bool:
        """Remove all from a cell on; False where this model cannot cut there."""
        memory = lib.llama_get_memory(self._context)
        place = position(self.cells[sequence][:start])
        if not lib.llama_memory_seq_rm(memory, sequence, place, -1):
            return False
        self._forgotten(sequence, start)
        return True

    def _forgotten(self, sequence: int, start: int) -> None:
        """From this cell on nothing stands there any more."""
        del self.cells[sequence][start:]
        self._next[sequence] = position(self.cells[sequence])

    def copy(self, source: int, target: int, length: int) -> None:
        """Let an empty sequence begin like another; costs nothing in a unified context."""
        if not self._unified:
            raise ValueError("sequences with room of their own are copied with `state`")
        self.forget(target)
        memory = lib.llama_get_memory(self._context)
        self.cells[target] = self.cells[source][:length]
        self._next[target] = position(self.cells[target])
        lib.llama_memory_seq_cp(memory, source, target, 0, self._next[target])

    def state(self, sequence: int) -> memoryview:
        """What was read of a sequence, for `restore`: bytes (N,)."""
        buffer = np.empty(self.state_bytes(sequence), np.uint8)  # not zeroed: it may be large
        return memoryview(buffer.data)[: self.write_state(sequence, buffer)]

    def write_state(self, sequence: int, buffer: npt.NDArray[np.uint8]) -> int:
        """Write a sequence's state at the beginning of a buffer (N,); how many bytes it took."""
        data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return int(lib.llama_state_seq_get_data(self._context, data, buffer.size, sequence))

    def state_bytes(self, sequence: int) -> int:
        """How large `state` is."""
        return int(lib.llama_state_seq_get_size(self._context, sequence))

    def restore(self, sequence: int, state: memoryview, cells: Sequence[Cell]) -> bool:
        """Put a state of `cells` in place of a sequence; False, and empty, if it does not fit."""
        self.forget(sequence)
        data = (ctypes.c_uint8 * len(state)).from_buffer(state)
        read = lib.llama_state_seq_set_data(self._context, data, len(state), sequence)
        memory = lib.llama_get_memory(self._context)
        last = lib.llama_memory_seq_pos_max(memory, sequence)
        behind = position(cells)
        if read != len(state) or last != behind - advance(cells[-1]):
            lib.llama_memory_seq_rm(memory, sequence, 0, -1)
            return False
        self.cells[sequence], self._next[sequence] = list(cells), behind
        return True

    def read_tokens(self, ids: Sequence[int], sequence: int = 0) -> Logits:
        """Read token ids behind what was read; the logits (V,) behind the last one."""
        return self.read_many([(sequence, ids)])[0]

    def read_many(self, reading: Sequence[tuple[int, Sequence[int]]]) -> list[Logits]:
        """Read token ids into several sequences at once; the logits (V,) behind each last one."""
        flat = [
            (sequence, token, place == len(ids) - 1)
            for sequence, ids in reading
            for place, token in enumerate(ids)
        ]
        found: list[Logits] = []
        for start in range(0, len(flat), self._settings.ubatch):
            chunk = flat[start : start + self._settings.ubatch]
            batch = self._batch(0, len(chunk))
            for i, (_, token, _) in enumerate(chunk):
                batch.token[i] = token
            found += self._decode(
                batch, [(s, token) for s, token, _ in chunk], [last for _, _, last in chunk]
            )
        if len(found) != len(reading):
            raise ValueError("no tokens to read")
        return found

    def read_rows(
        self, rows: npt.NDArray[np.float32], cells: Sequence[Cell], sequence: int = 0
    ) -> Logits:
        """Read rows (N, D) as these N cells; the logits (V,) behind the last one."""
        found: list[Logits] = []
        step = self._settings.ubatch
        for start in range(0, len(rows), step):
            chunk = np.ascontiguousarray(rows[start : start + step], np.float32)
            batch = self._batch(self._model.width, len(chunk))
            ctypes.memmove(batch.embd, chunk.ctypes.data, chunk.nbytes)
            wanted = [False] * len(chunk)
            wanted[-1] = start + step >= len(rows)
            found += self._decode(
                batch, [(sequence, cell) for cell in cells[start : start + step]], wanted
            )
        if not found:
            raise ValueError("no rows to read")
        return found[0]

    def read_tile(
        self, rows: npt.NDArray[np.float32], key: str, tile: Tile, sequence: int = 0
    ) -> Logits:
        """Read a tile's rows (N, D) in one go; the logits (V,) behind the last one."""
        count = len(rows)
        sections = 1 if tile.places is None else len(tile.places)
        rows = np.ascontiguousarray(rows, np.float32)
        batch = lib.llama_batch_init(count * sections, rows.shape[1], 1)
        try:
            batch.n_tokens = count
            ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
            wanted = [False] * (count - 1) + [True]
            lib.llama_set_causal_attn(self._context, tile.causal)
            cells = [(sequence, cell) for cell in tile.cells(key)]
            return self._decode(batch, cells, wanted, tile)[0]
        finally:
            lib.llama_set_causal_attn(self._context, True)
            lib.llama_batch_free(batch)

    def _batch(self, width: int, count: int) -> Any:
        """A batch of llama.cpp, for ids (width 0) or rows; kept and used again."""
        if width not in self._batches:
            self._batches[width] = lib.llama_batch_init(self._settings.ubatch, width, 1)
        batch = self._batches[width]
        batch.n_tokens = count
        return batch

    def _decode(
        self,
        batch: Any,
        cells: Sequence[tuple[int, Cell]],
        wanted: Sequence[bool],
        tile: Tile | None = None,
    ) -> list[Logits]:
        """Compute a batch of (sequence, cell); the logits of the positions that are `wanted`.

        A `tile` with places of its own is the whole batch.
        """
        before = {sequence: len(self.cells[sequence]) for sequence, _ in cells}
        following = {sequence: self._next[sequence] for sequence in before}
        for i, (sequence, cell) in enumerate(cells):
            batch.pos[i] = following[sequence]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted[i]
            following[sequence] += advance(cell)
        places = None if tile is None else tile.places_from(self._next[cells[0][0]])
        if places is not None:
            ctypes.memmove(batch.pos, places.ctypes.data, places.nbytes)
        done = False
        try:
            self._compute(batch)
            for sequence, cell in cells:
                self.cells[sequence].append(cell)
            self._next = [following.get(s, place) for s, place in enumerate(self._next)]
            done = True
        finally:  # Ctrl-C may come at any point of the above
            if not done:
                self._restore(before)
        return [self._logits(i) for i, is_wanted in enumerate(wanted) if is_wanted]

    def _compute(self, batch: Any) -> None:
        places = {batch.seq_id[i][0]: 0 for i in range(batch.n_tokens)}
        for i in reversed(range(batch.n_tokens)):
            places[batch.seq_id[i][0]] = batch.pos[i]
        binding.forget_errors()
        while True:
            with self._interrupt.watch():
                code = lib.llama_decode(self._context, batch)
            if code == 0:
                return
            if code != _ABORTED:
                raise _decode_error(code)
            # Python raises here if the signal is to end anything; else it is computed again.
            self._interrupt.clear()
            memory = lib.llama_get_memory(self._context)
            for sequence, place in places.items():
                if not lib.llama_memory_seq_rm(memory, sequence, place, -1):
                    raise LlavaError("the reading was interrupted", "ask again")

    def _restore(self, lengths: dict[int, int]) -> None:
        memory = lib.llama_get_memory(self._context)
        for sequence, length in lengths.items():
            self._forgotten(sequence, length)
            if not lib.llama_memory_seq_rm(memory, sequence, self._next[sequence], -1):
                self._forgotten(sequence, 0)  # a model that cannot be cut begins anew
                lib.llama_memory_seq_rm(memory, sequence, 0, -1)

    def _logits(self, place: int) -> Logits:
        logits = lib.llama_get_logits_ith(self._context, place)
        return np.ctypeslib.as_array(logits, (self._model.vocabulary.size,)).copy()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        self._free_context()
        self.cells = [[] for _ in range(self._sequences)]
        self._next = [0] * self._sequences
        for batch in self._batches.values():
            lib.llama_batch_free(batch)
        self._batches = {}

    def _free_context(self) -> None:
        if self._context:
            lib.llama_free(self._context)
        self._context = None
        self.capacity = 0


def _decode_error(code: int) -> LlavaError:
    if binding.ran_out_of_memory():
        return OutOfMemory("the model ran out of memory while reading", "use a smaller model")
    if code == 1:
        return LlavaError("the model's context is full", "ask with a shorter text")
    reasons = "; ".join(binding.last_errors()[-1:])
    return LlavaError(f"llama.cpp failed to compute (code {code}) {reasons}".strip())
