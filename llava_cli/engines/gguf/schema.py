"""JSON schemas, brought to the part of the language that llama.cpp's grammars hold to.

The converter of llama-cpp-python passes over what it does not know (bounds of numbers, siblings of
`anyOf`, names under `required` that have no schema), so an answer could break its schema. Here such
a schema is written in other words that say the same, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llava_cli.errors import UsageError

_NOTES = frozenset(
    "title description default examples deprecated readOnly writeOnly format"
    " $schema $id $comment $defs definitions discriminator".split()
)
"""Say nothing about what is valid."""
_HELD = frozenset(
    "type enum const properties required additionalProperties anyOf oneOf allOf items prefixItems"
    " minItems maxItems minLength maxLength pattern minimum maximum exclusiveMinimum"
    " exclusiveMaximum $ref".split()
)
_ALONE = ("$ref", "anyOf", "oneOf")
"""What the converter reads without looking at what stands beside it."""
_MOST_VALUES = 1000
"""Whole numbers within bounds are written out, up to so many."""


def holdable(schema: Any) -> Any:
    """A schema with the same or fewer valid documents, every part of which a grammar holds to."""
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise _refused(f"{json.dumps(schema)} is no schema")
    unknown = sorted(set(schema) - _NOTES - _HELD)
    if unknown:
        raise _refused(f"{unknown[0]!r} is not supported")
    found = dict(schema)
    for key in ("$defs", "definitions", "properties"):
        if key in found:
            found[key] = {name: holdable(value) for name, value in dict(found[key]).items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if key in found:
            found[key] = [holdable(value) for value in found[key]]
    return _alternatives(_object(_array(found)))


def _alternatives(schema: dict[str, Any]) -> dict[str, Any]:
    parts = schema.pop("allOf", None)
    if parts is not None:
        if len(parts) != 1 or set(schema) - _NOTES:
            raise _refused("'allOf' is supported with one part alone")
        return {**schema, **holdable(parts[0])}
    rest = set(schema) - _NOTES
    for key in _ALONE:
        if key in schema and rest != {key}:
            raise _refused(f"{sorted(rest - {key})[0]!r} beside {key!r} is not supported")
    if "enum" in schema and not schema["enum"]:
        raise _refused("an empty enum allows nothing")
    if "enum" in schema or "const" in schema:
        return schema
    kinds = schema.get("type")
    if isinstance(kinds, list):
        plain = {key: value for key, value in schema.items() if key != "type"}
        return {"anyOf": [_alternatives({**plain, "type": kind}) for kind in kinds]}
    return _text(_number(schema))


def _number(schema: dict[str, Any]) -> dict[str, Any]:
    """Bounds of whole numbers are written out as the numbers themselves."""
    bounds = {
        key: schema.pop(key)
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        if key in schema
    }
    if not bounds or schema.get("type") in ("string", "boolean", "null", "array", "object"):
        return schema
    lowest, highest = bounds.get("minimum"), bounds.get("maximum")
    if "exclusiveMinimum" in bounds:
        lowest = bounds["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in bounds:
        highest = bounds["exclusiveMaximum"] - 1
    whole = isinstance(lowest, int) and isinstance(highest, int)
    if schema.get("type") != "integer" or not whole or len(bounds) != 2:
        raise _refused("bounds of numbers are supported for integers with both ends")
    values = list(range(int(lowest or 0), int(highest or 0) + 1))
    if not 0 < len(values) <= _MOST_VALUES:
        raise _refused(f"{len(values)} whole numbers within bounds, at most {_MOST_VALUES} are")
    return {"enum": values}


def _text(schema: dict[str, Any]) -> dict[str, Any]:
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        raise _refused("'pattern' together with a length is not supported")
    return schema


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in properties]
    if missing:
        raise _refused(f"{missing[0]!r} is required, but has no schema")
    more = schema.get("additionalProperties")
    if properties or more is False:  # none is always allowed, and cannot clash with a named one
        schema.pop("additionalProperties", None)
        if not properties and more is False:
            return {"const": {}}
    elif more is not None and more is not True:
        schema["additionalProperties"] = holdable(more)
    return schema


def _array(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = [holdable(item) for item in schema.pop("items")]
    if "prefixItems" in schema:
        count = len(schema["prefixItems"])
        if not schema.get("minItems", 0) <= count <= schema.get("maxItems", count):
            raise _refused("'prefixItems' of another length than the array's")
        schema = {k: v for k, v in schema.items() if k not in ("items", "minItems", "maxItems")}
    elif "items" in schema:
        schema["items"] = holdable(schema["items"])
        if not schema["items"]:
            raise _refused("'items' that may be anything are not supported")
    elif "minItems" in schema or "maxItems" in schema:
        raise _refused("an array with bounds needs 'items'")
    return schema


def _refused(why: str) -> UsageError:
    return UsageError(
        f"the schema cannot be followed: {why}",
        "use objects, arrays, strings, numbers, booleans and enums",
    )
