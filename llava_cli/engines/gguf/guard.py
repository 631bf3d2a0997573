"""Repairs llama.cpp's CLIP graph while it runs, through its public evaluation callback.

Four things are put right; the first three are checked after every picture (`check`):

1. *Position of the class token* (ggml-org/llama.cpp#25814). The graph puts the class embedding
   behind the patches, but fills the row numbers as if it stood in front: every patch gets its
   neighbour's position embedding, the first patch is lost and the class token becomes the last
   picture token. The row numbers are rewritten before they are used.
2. *Patch embedding.* ggml rounds pixels and kernel to float16; the result is replaced by one
   computed in float32.
3. *GELU.* ggml's is the tanh form from a float16 table; that of LLaVA's projector (and of towers
   that say so) is the erf form, which ggml also has: the node is switched to it.
4. *Zeros.* Pixtral's graph clears memory that nobody has written by scaling it with 0; a NaN that
   happens to lie there stays one, in every break between rows of the picture. It becomes zeros.

The graph's nodes are C structs read at the offsets of 64-bit builds; `_Layout` proves the offsets
on a live node before anything is written, and any surprise refuses the model. In towers of other
families than CLIP's only the fourth is looked for.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_cli.engines.gguf.binding import ggml_base, lib
from llava_cli.engines.gguf.interrupt import Interrupt
from llava_cli.errors import ModelInvalid

Rows = npt.NDArray[np.float32]

_TYPE, _NE0, _NE1, _OP, _OP_PARAM0, _SRC0, _SRC1, _NAME = 0, 16, 24, 80, 84, 152, 160, 256
"""Offsets into struct ggml_tensor."""
_PAUSE = 24
"""Nodes computed in one go, some three quarters of a layer: Ctrl-C is heard in between."""
_F32, _I32 = 0, 26


class GraphGuard:
    """The callback and what it saw of the last picture."""

    def __init__(
        self, interrupt: Interrupt, *, has_class: bool, erf_layers: int | None = 0
    ) -> None:
        """`erf_layers`: how many layers of the tower have a GELU that must be the erf form.

        None leaves all activations as they are.
        """
        self._interrupt = interrupt
        self._ggml = _declared(ggml_base())
        self._unary = _unary_ops(self._ggml)
        self._has_class = has_class
        self._erf_layers = erf_layers
        self._patches: Rows | None = None
        self._reset()
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)
        """Keep referenced as long as the context lives."""

    def expect(self, patches: Rows | None) -> None:
        """Before each picture: its patch embedding (N, D) in float32, None to leave ggml's."""
        self._patches = patches
        self._reset()

    def check(self) -> None:
        """After each picture: everything was found and written exactly as often as it must be."""
        if self._error:
            raise _refuse(self._error)
        if self._has_class:
            rows = (self._order, self._rows_written)
            if rows not in (("last", 2), ("first", 0)):
                raise _refuse(f"class token {rows[0] or 'not found'}, {rows[1]} row lists written")
        if self._patches is not None and self._patches_written != 1:
            raise _refuse(f"patch embedding written {self._patches_written} times")
        if self._erf_layers is not None and self._gelu_switched != self._erf_layers + 1:
            raise _refuse(f"{self._gelu_switched} activations switched")

    def _reset(self) -> None:
        self._order = ""
        self._pending: list[int] = []
        self._rows_written = 0
        self._patches_written = 0
        self._gelu_switched = 0
        self._behind_tower = False
        self._error = ""
        self._nodes = 0
        self._patch_node = 0
        self._zero_node = 0

    def _on_node(self, tensor: int, ask: bool, _data: Any) -> bool:
        """Asked before a node runs (True: stop behind it and call again with ask=False)."""
        try:
            if self._interrupt.raised:  # stop behind this node, and there end it all
                return ask
            self._nodes += ask
            if not self._error:
                if not ask:
                    return self._after(tensor)
                return self._before(tensor) or self._nodes % _PAUSE == 0
        except Exception as error:  # noqa: BLE001 - ctypes would print it and go on unrepaired
            self._error = f"{type(error).__name__}: {error}"
        return not ask

    def _before(self, tensor: int) -> bool:
        self._prove_layout(tensor)
        op = self._ggml.ggml_op_name(_int32(tensor, _OP))
        if op == b"SCALE" and _float32(tensor, _OP_PARAM0) == 0:
            self._zero_node = tensor
            return True
        if not self._has_class and self._erf_layers is None:
            return False
        first, second = self._name(_pointer(tensor, _SRC0)), self._name(_pointer(tensor, _SRC1))
        if op == b"CONCAT" and (b"class_embd" in second or b"class_embd" in first):
            self._order = "last" if b"class_embd" in second else "first"
            if self._order == "last":
                for rows in self._pending:
                    self._write_rows(rows)
            return self._expect_patches(tensor)
        if op == b"ADD" and b"patch_embd.bias" in second and not self._has_class:
            return self._expect_patches(tensor)
        if op == b"GET_ROWS" and (b"positions" in second or b"patches" in second):
            numbers = _pointer(tensor, _SRC1) or 0
            self._behind_tower = b"patches" in second
            if self._order == "last":
                self._write_rows(numbers)
            elif not self._order:
                self._pending.append(numbers)
        if op == b"UNARY" and self._erf_layers is not None:
            if self._behind_tower or self._erf_layers:
                self._use_erf(tensor)
        return False

    def _expect_patches(self, tensor: int) -> bool:
        """Whether the patch embedding, which this node computes, is to be replaced."""
        self._patch_node = tensor
        return self._patches is not None

    def _after(self, tensor: int) -> bool:
        """Where zeros must stand in this node, or the patch embedding: put ours in its place."""
        if tensor == self._zero_node:
            zeros = bytes(self._ggml.ggml_nbytes(tensor))
            self._ggml.ggml_backend_tensor_set(tensor, zeros, 0, len(zeros))
        patches = self._patches
        if patches is None or tensor != self._patch_node:
            return True
        count, width = patches.shape
        classes = 1 if self._has_class else 0
        shape = (_int64(tensor, _NE0), _int64(tensor, _NE1))
        if shape != (width, count + classes) or _int32(tensor, _TYPE) != _F32:
            raise ValueError(f"patch embedding of shape {shape}, {patches.shape} was expected")
        offset = width * 4 if self._order == "first" else 0
        data = patches.ctypes.data_as(ctypes.c_void_p)
        self._ggml.ggml_backend_tensor_set(tensor, data, offset, patches.nbytes)
        self._patches_written += 1
        return True

    def _write_rows(self, tensor: int) -> None:
        """Row numbers that are right for a class token behind the patches."""
        count = _int64(tensor, _NE0)
        if _int32(tensor, _TYPE) != _I32 or not 0 < count < 1 << 20:
            raise ValueError("row numbers of an unexpected kind")
        rows = np.arange(count, dtype=np.int32)
        if b"positions" in self._name(tensor):
            rows = np.roll(rows, -1)  # 1, 2, ..., N, 0
        data = rows.ctypes.data_as(ctypes.c_void_p)
        self._ggml.ggml_backend_tensor_set(tensor, data, 0, rows.nbytes)
        self._rows_written += 1

    def _use_erf(self, tensor: int) -> None:
        """Switch a GELU node to the erf form; another activation there is a surprise."""
        gelu, erf = self._unary
        found = self._ggml.ggml_get_unary_op(tensor)
        if found not in (gelu, erf) or _int32(tensor, _OP_PARAM0) != found:
            raise ValueError(f"an activation is operation {found}")
        ctypes.c_int32.from_address(tensor + _OP_PARAM0).value = erf
        if self._ggml.ggml_get_unary_op(tensor) != erf:
            raise ValueError("an activation could not be switched")
        self._gelu_switched += 1

    def _name(self, tensor: int | None) -> bytes:
        return self._ggml.ggml_get_name(tensor) or b"" if tensor else b""

    def _prove_layout(self, tensor: int) -> None:
        """The name is an array inside the struct: its address shows where the fields before lie."""
        if self._ggml.name_address(tensor) - tensor != _NAME:
            raise ValueError("struct ggml_tensor is laid out differently")


def _declared(library: ctypes.CDLL) -> Any:
    """The functions used, with their types."""
    ggml: Any = library
    ggml.ggml_op_name.argtypes, ggml.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
    ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    prototype = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    address: Any = prototype(("ggml_get_name", ggml))
    ggml.name_address = address
    ggml.ggml_get_unary_op.argtypes = [ctypes.c_void_p]
    ggml.ggml_get_unary_op.restype = ctypes.c_int
    ggml.ggml_unary_op_name.argtypes = [ctypes.c_int]
    ggml.ggml_unary_op_name.restype = ctypes.c_char_p
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    ggml.ggml_backend_tensor_set.argtypes = [pointer, pointer, size, size]
    ggml.ggml_backend_tensor_set.restype = None
    ggml.ggml_nbytes.argtypes, ggml.ggml_nbytes.restype = [pointer], size
    return ggml


def _unary_ops(ggml: Any) -> tuple[int, int]:
    """Numbers of GELU and GELU_ERF in this build."""
    numbers: dict[bytes, int] = {}
    for number in range(20):  # both stand early in the enum, which must not be left
        numbers[ggml.ggml_unary_op_name(number)] = number
        if b"GELU" in numbers and b"GELU_ERF" in numbers:
            return numbers[b"GELU"], numbers[b"GELU_ERF"]
    raise _refuse("no GELU_ERF operation")


def _int32(tensor: int, offset: int) -> int:
    return ctypes.c_int32.from_address(tensor + offset).value


def _float32(tensor: int, offset: int) -> float:
    return ctypes.c_float.from_address(tensor + offset).value


def _int64(tensor: int, offset: int) -> int:
    return ctypes.c_int64.from_address(tensor + offset).value


def _pointer(tensor: int, offset: int) -> int | None:
    return ctypes.c_void_p.from_address(tensor + offset).value


def _refuse(why: str) -> ModelInvalid:
    return ModelInvalid(
        f"llama.cpp's picture encoder works in an unexpected way ({why}), so its answers would be "
        "wrong",
        "install the llama-cpp-python that llava-cli asks for, or use --engine torch",
    )
