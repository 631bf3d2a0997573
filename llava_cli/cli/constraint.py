"""--schema, --choices and --yes-no: from what a person writes to what an engine is held to."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_cli.errors import LlavaError, UsageError

if TYPE_CHECKING:
    from llava_cli.cli.answering import Answer
    from llava_cli.engines.base import Sampling

YES_NO = (("yes", "Yes"), ("no", "No"))
_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
}
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_FIELDS = "write fields like: name, age int, tall bool"


def constrained(sampling: Sampling, options: dict[str, Any]) -> Sampling:
    """The sampling with what may be answered; every mistake is found here, before any model."""
    given = [n for n in ("choices", "yes_no", "schema") if options[n] not in (None, False)]
    if len(given) > 1:
        raise UsageError("give one of --schema, --choices and --yes-no", "leave the others out")
    if options["yes_no"]:
        return replace(sampling, choices=YES_NO)
    if options["choices"] is not None:
        return replace(sampling, choices=tuple((text,) for text in _choices(options["choices"])))
    if options["schema"] is not None:
        if options["prefill"]:
            raise UsageError("--schema begins the answer itself", "leave out --prefill")
        return replace(sampling, schema=_schema(options["schema"]))
    return sampling


def check_answer(answer: Answer, sampling: Sampling) -> None:
    """An answer that was cut off is no JSON."""
    if sampling.schema is None:
        return
    try:
        json.loads(answer.text)
    except ValueError as error:
        raise LlavaError(
            f"the answer was cut off after {sampling.max_tokens} tokens, before its JSON was whole",
            "give a larger --max-tokens, or bound the schema's texts with maxLength",
        ) from error


def fields_schema(text: str) -> dict[str, Any]:
    """The schema of a list of fields: `name, age int, tall bool`, one a line or between commas.

    Behind a colon stands what a field means (llm's notation).
    """
    parts = text.splitlines() if "\n" in text else text.split(",")
    properties: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in parts)):
        field, _, meaning = part.partition(":")
        words = field.split()
        kind = words[1] if len(words) == 2 else "str"
        if not 1 <= len(words) <= 2 or not _NAME.fullmatch(words[0]) or kind not in _TYPES:
            raise UsageError(f"--schema: {part!r} is no field", _FIELDS)
        if words[0] in properties:
            raise UsageError(f"--schema: the field {words[0]} is there twice", _FIELDS)
        properties[words[0]] = {"type": _TYPES[kind]}
        if meaning.strip():
            properties[words[0]]["description"] = meaning.strip()
    if not properties:
        raise UsageError("--schema is empty", _FIELDS)
    return {"type": "object", "properties": properties, "required": list(properties)}


def _choices(text: str) -> list[str]:
    choices = [choice.strip() for choice in text.split(",")]
    if len(choices) < 2 or not all(choices):
        raise UsageError("--choices needs at least two answers", "write them like: red,green,blue")
    if len(set(choices)) < len(choices):
        raise UsageError("--choices names an answer twice", "leave one out")
    return choices


def _schema(text: str) -> str:
    """A file, a JSON schema itself, or a list of fields; as JSON."""
    from llava_cli.engines import check_schema

    written = _file_text(text)
    if text.lstrip().startswith("{") or written is not None:
        try:
            schema = json.loads(text if written is None else written)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--schema is not JSON: {error}", "check it with: jq .") from error
        if not isinstance(schema, dict):
            raise UsageError("--schema is JSON, but no schema", 'write it like {"type": "object"}')
    else:
        schema = fields_schema(text)
    packed = json.dumps(schema)
    check_schema(packed)
    return packed


def _file_text(text: str) -> str | None:
    """The text of the file that is meant; None where a list of fields or JSON is."""
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if text.endswith(".json"):
            raise UsageError(f"--schema: {text} cannot be read: {error}", "check it") from error
        return None
    if text.endswith(".json"):
        raise UsageError(f"--schema: no such file: {text}", "check the path")
    return None
