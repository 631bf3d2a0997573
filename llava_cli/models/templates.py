"""Chat templates: run in a sandbox, and told apart by what they write of a sample conversation.

A llava-hf folder or a foreign GGUF carries a Jinja template, not a format's name. Rendering it and
reading the result is decided by content; where nothing matches, nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

OWN_TEMPLATE = "chat_template"
"""Stands for a prompt format where a model writes its prompts by the template in its files."""
_SAMPLE = ("Q1?", "A1.", "Q2?")
_PICTURE = r"(?:<image>\s*)?"
_END = r"(?:</s>)?"
_SHAPES: tuple[tuple[str, str], ...] = (
    ("vicuna_v1", rf"USER: {_PICTURE}Q1\? ASSISTANT: A1\. ?{_END}\s*USER: Q2\? ASSISTANT:$"),
    (
        "llava_v0",
        rf"###\s?Human: {_PICTURE}Q1\?###\s?Assistant: A1\.###\s?Human: Q2\?###\s?Assistant:$",
    ),
    (
        "mistral_instruct",
        rf"^(?:<s>)?\s?\[INST\] ?{_PICTURE}Q1\? ?\[/INST\] ?A1\. ?</s>\s?"
        r"\[INST\] ?Q2\? ?\[/INST\]$",
    ),
    (
        "llava_llama_2",
        rf"\[INST\] ?{_PICTURE}Q1\? ?\[/INST\] ?A1\. ?</s>\s?<s>\s?\[INST\] ?Q2\? ?\[/INST\]$",
    ),
    (
        "chatml_direct",
        rf"<\|im_start\|>user\n{_PICTURE}Q1\?<\|im_end\|><\|im_start\|>assistant\nA1\.<\|im_end\|>"
        r"<\|im_start\|>user\nQ2\?<\|im_end\|><\|im_start\|>assistant\n$",
    ),
)


def format_of(template: str) -> str | None:
    """Name of the prompt format that a chat template writes; None where it is none that we know."""
    for typed in (True, False):
        rendered = _render(template, typed)
        if rendered is None:
            continue
        for name, shape in _SHAPES:
            if re.search(shape, rendered):
                return name
    return None


def compiled(template: str) -> Any:
    """A template as transformers would compile it; `run` gives its text. Raises TemplateError."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # `{% generation %}` marks answers for training in transformers; Jinja does not know it
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment.from_string(plain)


def run(template: Any, messages: Sequence[Mapping[str, Any]], **names: Any) -> str:
    """What a compiled template writes; ValueError where it cannot write this conversation."""
    from jinja2 import TemplateError

    try:
        return str(template.render(messages=messages, tools=None, documents=None, **names))
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    except RecursionError as error:
        raise ValueError("it calls itself without end") from error


def _render(template: str, typed: bool) -> str | None:
    """The sample in this template; None where it cannot be rendered."""
    from jinja2 import TemplateError

    question, answer, again = _SAMPLE
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": again},
    ]
    if typed:
        for message in messages:
            message["content"] = [{"type": "text", "text": message["content"]}]
        messages[0]["content"].insert(0, {"type": "image"})
    try:
        names = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
        return run(compiled(template), messages, **names)
    except (TemplateError, ValueError, RecursionError):
        return None


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
