"""Which prompt format a chat template writes, found by running it on a sample conversation.

A llava-hf folder or a foreign GGUF carries a Jinja template, not a format's name. Rendering it in a
sandbox and reading the result is decided by content; where nothing matches, nothing is guessed.
"""

from __future__ import annotations

import re
from typing import Any

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


def _render(template: str, typed: bool) -> str | None:
    """The sample in this template; None where it cannot be rendered."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

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
    # `{% generation %}` marks answers for training in transformers; Jinja does not know it
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    try:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(plain).render(
            messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )
    except (TemplateError, TypeError, ValueError, AttributeError, KeyError, RecursionError):
        return None
