"""Q4_K as ggml writes it, bit for bit, and sooner.

Nearly all of a conversion to Q4_K goes into ggml's search (`make_qkx2_quants` in ggml-quants.c)
for the scale and minimum of 32 values: 22 candidates, one block after the other, compiled for
every processor of the kind. Here the same operations in the same order are written down once as a
graph of ggml's own tensor operations, and computed for 768 blocks at a time by the library that is
compiled for this processor. Every step rounds alone, so that the numbers are ggml's.

Where a compiler fused multiplications into additions (ARM), ggml's own search rounds otherwise:
`encoder` compares the two on a sample first. Blocks that meet an unusual case (all values equal, a
scale that rounds to zero) are left to ggml. Not here: importance matrices, other types.

Legend: B blocks of 32 values, S superblocks of 8 blocks.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llava_cli.errors import LlavaError

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Quantize = Callable[[Array], Bytes]
"""Float32 values, a multiple of 256, to Q4_K blocks of 144 bytes."""

BLOCK: Final = 32
BLOCKS: Final = 8
"""Blocks of a superblock, which share the precision of their scales."""
LEVELS: Final = 15
BATCH: Final = 768
"""Blocks that one graph computes: its five arrays of 96 KB stay in the processor's cache."""
STEPS: Final = 21
APART: Final = 576
"""Bytes between tensors, so that the same place in each does not fall on one cache set."""
ROUNDING: Final = 12582912.0
"""1.5 * 2**23: added to a small float32 and taken away again, it leaves the nearest integer."""
_GGML_TYPE_F32: Final = 0
_NODES: Final = 1500


def encoder(reference: Quantize) -> Quantize:
    """The quick way where it gives the bytes of `reference`, ggml's own function; else that."""
    try:
        _Search()
    except (LlavaError, OSError, AttributeError):  # a library built without these functions
        return reference
    quick = functools.partial(quantize, reference)
    rng = np.random.default_rng(4)
    either, above = rng.standard_normal(32 * BATCH, np.float32), rng.random(32 * BATCH, np.float32)
    sample = np.concatenate([either * np.float32(0.02), above])
    return quick if np.array_equal(quick(sample), reference(sample)) else reference


def quantize(reference: Quantize, values: Array) -> Bytes:
    """Q4_K blocks of `values`, whose number is a multiple of 256, as uint8 (144 a superblock)."""
    blocks = values.reshape(-1, BLOCK)
    scales, minima = _search(blocks)
    with np.errstate(all="ignore"):  # what is left to ggml may be anything
        out, whole = _packed(blocks, scales.reshape(-1, BLOCKS), minima.reshape(-1, BLOCKS))
    left = np.flatnonzero(~whole)
    if left.size:
        rest = np.ascontiguousarray(values.reshape(-1, BLOCKS * BLOCK)[left])
        out[left] = reference(rest).reshape(left.size, -1)
    return out.reshape(-1)


def _search(blocks: Array) -> tuple[Array, Array]:
    """Scale and minimum (B,) of blocks (B, 32); not finite where a case is unusual."""
    search = getattr(_of_thread, "search", None) or _Search()
    _of_thread.search = search
    scales, minima = np.empty((2, len(blocks)), np.float32)
    for start in range(0, len(blocks), BATCH):
        part = slice(start, start + BATCH)
        scales[part], minima[part] = search(blocks[part])
    return scales, minima


def _packed(blocks: Array, scales: Array, minima: Array) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """Superblocks (S, 144) of blocks (8 S, 32) with scales and minima (S, 8); which are ggml's.

    A superblock: float16 scale of scales, float16 scale of minima, 8 scales and 8 minima of six
    bits in 12 bytes, then 256 values of four bits.
    """
    top = np.stack([scales.max(1), minima.max(1)])
    to_six_bits = np.float32(63) / top
    to_six_bits[1, top[1] == 0] = 0
    small = np.minimum(np.rint(np.stack([scales, minima]) * to_six_bits[..., None]), np.float32(63))
    halves = (top / np.float32(63)).astype(np.float16)
    step, low = halves.astype(np.float32)[..., None] * small
    whole = (np.isfinite(step) & np.isfinite(low) & (step > 0) & (scales > 0)).all(1)

    levels = blocks + low.reshape(-1, 1)
    levels /= step.reshape(-1, 1)
    np.rint(levels, out=levels)
    np.clip(levels, 0, LEVELS, out=levels)
    four_bits = levels.astype(np.uint8).reshape(-1, BLOCKS // 2, 2, BLOCK)

    out = np.empty((len(scales), 144), np.uint8)
    out[:, :4] = np.ascontiguousarray(halves.T).view(np.uint8)
    first, last = small.astype(np.uint8).reshape(2, -1, 2, BLOCKS // 2).transpose(2, 0, 1, 3)
    out[:, 4:8] = first[0] | (last[0] >> 4) << 6
    out[:, 8:12] = first[1] | (last[1] >> 4) << 6
    out[:, 12:16] = (last[0] & 15) | (last[1] & 15) << 4
    out[:, 16:] = (four_bits[:, :, 0] | four_bits[:, :, 1] << 4).reshape(-1, 128)
    return out, whole


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@functools.cache
def _functions() -> Any:
    """ggml's functions that a graph is built with, declared."""
    from llava_cli.engines.gguf.binding import ggml_library, start

    start()
    base, cpu = ggml_library("base"), ggml_library("cpu")
    pointer, number = ctypes.c_void_p, ctypes.c_float
    for name in ("add", "sub", "mul", "div", "repeat_back"):
        _declare(base, f"ggml_{name}", pointer, pointer, pointer, pointer)
    for name in ("abs", "sqrt", "step"):
        _declare(base, f"ggml_{name}", pointer, pointer, pointer)
    for name in ("clamp", "scale_bias"):
        _declare(base, f"ggml_{name}", pointer, pointer, pointer, number, number)
    _declare(base, "ggml_init", pointer, _InitParams)
    _declare(base, "ggml_tensor_overhead", ctypes.c_size_t)
    _declare(base, "ggml_graph_overhead_custom", ctypes.c_size_t, ctypes.c_size_t, ctypes.c_bool)
    whole = ctypes.c_int64
    _declare(base, "ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, whole, whole)
    _declare(base, "ggml_new_graph_custom", pointer, pointer, ctypes.c_size_t, ctypes.c_bool)
    _declare(base, "ggml_build_forward_expand", None, pointer, pointer)
    _declare(base, "ggml_backend_cpu_buffer_from_ptr", pointer, pointer, ctypes.c_size_t)
    _declare(base, "ggml_backend_tensor_alloc", ctypes.c_int, pointer, pointer, pointer)
    _declare(base, "ggml_get_data", pointer, pointer)
    for name in ("ggml_free", "ggml_backend_free", "ggml_backend_buffer_free"):
        _declare(base, name, None, pointer)
    _declare(base, "ggml_backend_graph_compute", ctypes.c_int, pointer, pointer)
    _declare(cpu, "ggml_backend_cpu_init", pointer)
    _declare(cpu, "ggml_backend_cpu_set_n_threads", None, pointer, ctypes.c_int)
    for name in ("ggml_backend_cpu_init", "ggml_backend_cpu_set_n_threads"):
        setattr(base, name, getattr(cpu, name))
    return base


def _declare(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> None:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments


class _Graph:
    """Tensors of rows at fixed places of one array, and operations on them in order.

    A row is BATCH values. To ggml all rows of a tensor are one, over which a single row is
    repeated: its loop over rows costs more than the arithmetic.
    """

    def __init__(self, places: int) -> None:
        """`places`: how many rows all tensors have together."""
        self._ggml = ggml = _functions()
        self._memory = np.zeros(places * (BATCH + APART // 4) + 16, np.float32)
        self._next = -(-self._memory.ctypes.data // 64) * 64
        room = ggml.ggml_graph_overhead_custom(_NODES, False)
        room += _NODES * ggml.ggml_tensor_overhead()
        self._context = ggml.ggml_init(_InitParams(room, None, True))
        self._graph = ggml.ggml_new_graph_custom(self._context, _NODES, False)
        size = self._memory.nbytes - 64
        self._buffer = ggml.ggml_backend_cpu_buffer_from_ptr(self._next, size)
        self._backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self._backend, 1)
        weakref.finalize(self, ggml.ggml_free, self._context)
        weakref.finalize(self, ggml.ggml_backend_buffer_free, self._buffer)
        weakref.finalize(self, ggml.ggml_backend_free, self._backend)

    def place(self, rows: int = 1) -> int:
        """Room for a tensor, as its address."""
        place = self._next
        self._next += rows * BATCH * 4 + APART
        return place

    def array(self, place: int, rows: int = 1) -> Array:
        """What lies there: (rows, BATCH)."""
        first = (place - self._memory.ctypes.data) // 4
        return self._memory[first : first + rows * BATCH].reshape(rows, BATCH)

    def leaf(self, place: int, rows: int = 1) -> int:
        """A tensor that is given, not computed."""
        tensor = self._ggml.ggml_new_tensor_2d(self._context, _GGML_TYPE_F32, BATCH * rows, 1)
        self._ggml.ggml_backend_tensor_alloc(self._buffer, tensor, place)
        return int(tensor)

    def do(self, name: str, place: int, *arguments: float) -> int:
        """Append an operation whose result goes to `place`; returns its tensor."""
        tensor = getattr(self._ggml, f"ggml_{name}")(self._context, *arguments)
        self._ggml.ggml_backend_tensor_alloc(self._buffer, tensor, place)
        self._ggml.ggml_build_forward_expand(self._graph, tensor)
        return int(tensor)

    def compute(self) -> None:
        """Run all operations; other threads of Python go on."""
        if self._ggml.ggml_backend_graph_compute(self._backend, self._graph):
            raise LlavaError("ggml could not compute the graph of Q4_K")


class _Search:
    """`make_qkx2_quants(32, 15, x, weights, ..., -1, 0.1, 20, false)` for BATCH blocks at once.

    Names are those of the C function. A row holds the same value of every block, so that a sum over
    rows adds a block's values in their order.
    """

    def __init__(self) -> None:
        graph = self._graph = _Graph(5 * BLOCK + 64)
        self._x, self._l, self._t, self._w, self._wl = (graph.place(BLOCK) for _ in range(5))
        low, high = graph.place(), graph.place()
        self._low, self._high = graph.array(low)[0], graph.array(high)[0]
        self._lowest, self._highest = graph.leaf(low), graph.leaf(high)
        self._row = self._lowest  # any tensor of one row
        self._best, self._tried = graph.place(3), graph.place(3)
        """Error, scale and minimum: the best so far, and a candidate's."""
        self._values = graph.leaf(self._x, BLOCK)
        self._chosen = graph.place(3)
        self._spare = [graph.place() for _ in range(9)]
        self._build()

    def __call__(self, blocks: Array) -> tuple[Array, Array]:
        """Scales and minima (B,) of at most BATCH blocks (B, 32)."""
        count = len(blocks)
        values = self._graph.array(self._x, BLOCK)
        values[:, :count] = blocks.T
        np.minimum(values.min(0), np.float32(0), out=self._low)
        values.max(0, out=self._high)
        self._graph.compute()
        _, scale, low = self._graph.array(self._best, 3)[:, :count]
        return scale, 0 - low

    def _build(self) -> None:
        do, spare = self._graph.do, self._spare
        t = do("mul", self._t, self._values, self._values)
        square = do("scale_bias", spare[0], self._sum(t, spare[0]), 1 / BLOCK, 0.0)
        t = do("abs", self._t, self._values)
        weights = do("add", self._w, t, do("sqrt", spare[0], square))
        sum_w = self._sum(weights, self._graph.place())
        t = do("mul", self._t, weights, self._values)
        sum_x = self._sum(t, self._graph.place())
        best, tried = self._graph.leaf(self._best, 3), self._graph.leaf(self._tried, 3)
        error, scale, low = (self._graph.leaf(place) for place in _rows(self._best))
        do("scale_bias", _rows(self._best)[2], self._lowest, 1.0, 0.0)
        inverse = self._inverse(np.float32(LEVELS), low)
        do("div", _rows(self._best)[1], self._constant(np.float32(1)), inverse)
        levels = self._levels(inverse, low)
        self._error(levels, weights, scale, low, _rows(self._best)[0])
        for step in range(STEPS):
            wider = np.float32(-1) + np.float32(0.1) * np.float32(step)
            levels = self._levels(self._inverse(wider + np.float32(LEVELS), low), low)
            fitted, lowered, usable = self._fit(levels, weights, sum_w, sum_x)
            other = self._error(levels, weights, fitted, lowered, _rows(self._tried)[0])
            better = do("step", spare[5], do("sub", spare[5], error, other))
            better = do("mul", spare[5], better, usable)
            worse = do("scale_bias", spare[6], better, -1.0, 1.0)
            self._choose(better, worse, tried, best)

    def _fit(self, levels: int, weights: int, sum_w: int, sum_x: int) -> tuple[int, int, int]:
        """The scale and minimum that fit the levels best, and 1 where they can be told."""
        do, spare = self._graph.do, self._spare
        _, fitted, lowered = _rows(self._tried)
        wl = do("mul", self._wl, weights, levels)
        sum_l = self._sum(wl, spare[0])
        sum_l2 = self._sum(do("mul", self._t, wl, levels), spare[1])
        sum_xl = self._sum(do("mul", self._wl, wl, self._values), spare[2])

        def cross(a: int, b: int, c: int, d: int, place: int) -> int:
            left, right = do("mul", place, a, b), do("mul", spare[7], c, d)
            return do("sub", place, left, right)

        determinant = cross(sum_w, sum_l2, sum_l, sum_l, spare[3])
        scale = do("div", fitted, cross(sum_w, sum_xl, sum_x, sum_l, fitted), determinant)
        low = do("div", lowered, cross(sum_l2, sum_x, sum_l, sum_xl, lowered), determinant)
        above = do("step", spare[4], low)
        below = do("scale_bias", spare[8], above, -1.0, 1.0)
        without = do("div", spare[2], sum_xl, sum_l2)
        scale = self._choose(above, below, without, scale)
        low = do("clamp", lowered, low, -float(np.finfo(np.float32).max), 0.0)
        return scale, low, do("step", spare[3], determinant)

    def _inverse(self, levels: np.float32, low: int) -> int:
        """levels / (max - min)."""
        place = self._spare[0]
        span = self._graph.do("sub", place, self._highest, low)
        return self._graph.do("div", place, self._constant(levels), span)

    def _levels(self, inverse: int, low: int) -> int:
        """The level of every value: round(inverse * (x - min)), within 0 and 15."""
        do, place = self._graph.do, self._l
        above = do("mul", place, do("sub", place, self._values, low), inverse)
        rounded = do("scale_bias", place, above, 1.0, ROUNDING)
        return do("clamp", place, do("scale_bias", place, rounded, 1.0, -ROUNDING), 0.0, LEVELS)

    def _error(self, levels: int, weights: int, scale: int, low: int, place: int) -> int:
        """The sum of weight * (scale * level + min - x)**2 over a block's values.

        It is worked out where the levels are, whose last use this is: writing to where a value was
        just read is quicker.
        """
        do, here = self._graph.do, self._l
        fitted = do("add", here, do("mul", here, levels, scale), low)
        off = do("sub", here, fitted, self._values)
        return self._sum(do("mul", here, do("mul", here, off, off), weights), place)

    def _sum(self, rows: int, place: int) -> int:
        """The rows added one after the other."""
        return self._graph.do("repeat_back", place, rows, self._row)

    def _constant(self, value: np.float32) -> int:
        place = self._graph.place()
        self._graph.array(place)[:] = value
        return self._graph.leaf(place)

    def _choose(self, yes: int, no: int, one: int, other: int) -> int:
        """`one` where `yes` is 1, `other` where `no` is 1; the result replaces `other`.

        What is not finite stays so, whichever is chosen: such blocks are left to ggml.
        """
        do, place = self._graph.do, _functions().ggml_get_data(other)
        return do("add", place, do("mul", place, other, no), do("mul", self._chosen, one, yes))


def _rows(place: int) -> tuple[int, int, int]:
    """The places of three rows, one behind the other."""
    row = BATCH * 4
    return place, place + row, place + 2 * row


_of_thread = threading.local()
"""A thread's own graph: its arrays are written while Python's other threads run."""
