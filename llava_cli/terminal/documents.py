"""JSON on stdout and the forms of a failure on stderr."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, TextIO

from llava_cli.terminal.safe import one_line
from llava_cli.terminal.streams import bold_red, dim, write

# Equal after parsing, but no terminal is steered by it and every encoding can carry it.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def dumps(document: Any, *, indent: int | None = None, stream: TextIO | None = None) -> str:
    """JSON of exactly these values; letters beyond ASCII are readable where the stream has them."""
    encoding = (getattr(stream or sys.stdout, "encoding", None) or "ascii").lower()
    readable = encoding.replace("-", "").startswith("utf")
    text = json.dumps(document, ensure_ascii=not readable, indent=indent, allow_nan=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def write_document(document: Any) -> None:
    """The one JSON document of a command."""
    write(dumps(document, indent=2) + "\n")


def write_json_line(document: Any) -> None:
    """One line of JSON Lines."""
    write(dumps(document) + "\n")


def write_failure(kind: str, message: str, hint: str, *, as_json: bool) -> None:
    """What is wrong and what to do: two lines, or one JSON object, on stderr."""
    err = sys.stderr
    if as_json:
        error = {"type": kind, "message": message, "hint": hint}
        err.write(dumps({"error": error}, stream=err) + "\n")
    else:
        err.write(f"{bold_red('error:', err)} {one_line(message)}\n")
        if hint:
            err.write(f"{dim('hint:', err)} {one_line(hint)}\n")
    err.flush()
