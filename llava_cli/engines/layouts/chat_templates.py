"""A prompt format as the Jinja template that transformers and llama.cpp read.

So that a converted model says itself how it wants to be asked, also to programs that do not know
`llava.prompt_format`. Content may be a string or transformers' list of typed parts; a picture is
written as `<image>`. No BOS: tokenizers add it. Not here: finding out which format a foreign
template writes (`llava_cli.models.templates`).
"""

from __future__ import annotations

from pathlib import Path

from llava_cli.models.folders import chat_template
from llava_cli.models.templates import format_of
from llava_cli.prompts import FORMATS, PromptFormat

_TEXT = (
    "{%- macro said(message) -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
_PICTURES = (
    "{%- if message['content'] is not string -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}"
    "{{ IMAGE }}"
    "{%- endfor -%}{%- endif -%}"
)
_SYSTEM = (
    "{%- set state = namespace(system=DEFAULT, turn=0) -%}"
    "{%- for message in messages if message['role'] == 'system' -%}"
    "{%- set state.system = said(message) -%}{%- endfor -%}"
)
_TURNS = (
    "{%- for message in messages if message['role'] != 'system' -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{ BETWEEN if state.turn else '' }}{{ USER_OPEN }}"
    "INNER_SYSTEM"
    "{%- set state.turn = state.turn + 1 -%}"
    "PICTURES{{ QUESTION }}{{ USER_CLOSE }}{{ HEADER }}"
    "{%- else -%}"
    "{{ ANSWER_OPEN }}{{ said(message) }}"
    "{%- if not loop.last or not (continue_final_message is defined and continue_final_message) -%}"
    "{{ ANSWER_CLOSE }}"
    "{%- endif -%}{%- endif -%}{%- endfor -%}"
)
_OWN_SYSTEM = "{{ SYSTEM_OPEN + state.system + SYSTEM_CLOSE if state.system else '' }}"


def template_of(name: str | None) -> str | None:
    """The template of a prompt format by its exact name; None for none."""
    return recognisable(jinja(FORMATS[name]), FORMATS[name]) if name in FORMATS else None


def fitting_template(folder: Path, prompt_format: str | None) -> str | None:
    """The template to store: the folder's own, unless it writes another format than is known."""
    own = chat_template(folder)
    if prompt_format not in FORMATS:
        return own
    if own and format_of(own) == prompt_format:
        return recognisable(own, FORMATS[prompt_format])
    return template_of(prompt_format)


def recognisable(template: str, form: PromptFormat) -> str:
    """The template with the format's own words in it, in a comment where they stand nowhere else.

    llama.cpp's tools run no Jinja unless told to (--jinja): they look for such words to choose one
    of the templates that they know, and stop where they find none.
    """
    words = [word.split("\n")[0] for word in (form.user_open, form.header + form.answer_open)]
    if all(word in template for word in words):
        return template
    return f"{{#- {words[0]}... {words[1]}... -#}}{template}"


def jinja(form: PromptFormat) -> str:
    """One line of Jinja that writes what `prompts.render` renders."""
    inner, outer = (_OWN_SYSTEM, "") if form.system_in_user else ("", _OWN_SYSTEM)
    template = _TEXT + _SYSTEM + outer + _TURNS
    template = template.replace("INNER_SYSTEM", _first(inner) if inner else "")
    template = template.replace("PICTURES", _PICTURES)
    question = "said(message)" if form.reads_question else "''"
    values = {
        "DEFAULT": form.system, "SYSTEM_OPEN": form.system_open, "SYSTEM_CLOSE": form.system_close,
        "BETWEEN": form.between, "USER_OPEN": form.user_open, "USER_CLOSE": form.user_close,
        "HEADER": form.header, "ANSWER_OPEN": form.answer_open, "ANSWER_CLOSE": form.answer_close,
        "IMAGE": f"{form.image_open}<image>{form.image_close}{form.image_gap}",
    }  # fmt: skip
    template = template.replace("QUESTION", question)
    for key, value in values.items():
        template = template.replace(key, _quoted(value))
    return template


def _first(text: str) -> str:
    """Written in the first turn only."""
    return "{%- if state.turn == 0 -%}" + text + "{%- endif -%}"


def _quoted(text: str) -> str:
    """A Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
