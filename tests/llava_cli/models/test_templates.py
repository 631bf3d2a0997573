"""Chat templates are recognised by what they write, and never guessed."""

from __future__ import annotations

import pytest

from llava_cli.models.templates import format_of

LLAVA_HF = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PLAIN_VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}ASSISTANT:"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}"
    " [/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content']"
    " + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML_TIGHT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
CHATML_LINES = CHATML_TIGHT.replace("<|im_end|>", "<|im_end|>{{ '\n' }}")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (LLAVA_HF, "vicuna_v1"),
        (PLAIN_VICUNA, "vicuna_v1"),
        (MISTRAL, "mistral_instruct"),
        (LLAMA_2, "llava_llama_2"),
        (CHATML_TIGHT, "chatml_direct"),
        (CHATML_LINES, None),
        ("{{ messages | length }}", None),
        ("{% if %}", None),
        ("{{ raise_exception('roles must alternate') }}", None),
        ("{{ ().__class__.__bases__[0].__subclasses__() }}", None),
        ("", None),
    ],
)
def test_formats_are_recognised_by_what_they_write(template: str, name: str | None) -> None:
    assert format_of(template) == name
