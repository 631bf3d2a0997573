"""What is written beside the files, and what `--check` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_cli.conversation import Conversation, Message
from llava_cli.engines.layouts.chat_templates import jinja, template_of
from llava_cli.models.folders import front_matter
from llava_cli.models.templates import format_of
from llava_cli.prompts import FORMATS, prompt_text, render
from llava_convert.cards import card, go_template, modelfile, write_beside
from llava_convert.check import Answer, compare
from llava_convert.result import ConvertedFile


def files(folder: Path) -> list[ConvertedFile]:
    return [
        ConvertedFile(folder / "m-Q8_0.gguf", "text", "Q8_0", 900, "a" * 64),
        ConvertedFile(folder / "m-Q4_K_M.gguf", "text", "Q4_K_M", 500, "b" * 64),
        ConvertedFile(folder / "mmproj-m-F16.gguf", "mmproj", "F16", 100, "c" * 64),
    ]


def talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, (text,)) for role, text in turns))  # type: ignore[arg-type]


CONVERSATIONS = (
    (("user", "what's this?"),),
    (("user", "one"), ("assistant", "first answer"), ("user", "two")),
    (("system", "Be brief."), ("user", "one"), ("assistant", "a\nb"), ("user", 'say "x"')),
)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("typed", [True, False])
def test_chat_templates_write_what_prompts_render(
    name: str, turns: tuple[tuple[str, str], ...], typed: bool
) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    form = FORMATS[name]
    if not form.reads_question:
        return
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}] if typed else text}
        for role, text in turns
    ]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(jinja(form))
    written = template.render(messages=messages, add_generation_prompt=True)
    assert written == prompt_text(render(talk(*turns), form))


def test_pictures_stand_in_front_of_the_question() -> None:
    from jinja2 import Environment

    messages = [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image"}]}]
    written = Environment().from_string(jinja(FORMATS["vicuna_v1"])).render(messages=messages)
    assert written.endswith("USER: <image>\nq ASSISTANT:")


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_v0", "mistral_instruct", "chatml_direct"])
def test_a_template_is_recognised_as_its_format(name: str) -> None:
    assert format_of(template_of(name) or "") == name
    assert template_of(None) is None


def test_the_card_and_the_modelfile_name_the_files(tmp_path: Path) -> None:
    facts = {"prompt_format": "vicuna_v1", "license": "llama2", "base_model": "org/base"}
    text = card("m", files(tmp_path), facts)
    assert text.startswith("---\n") and "license: llama2" in text and "base_model: org/base" in text
    for file in files(tmp_path):
        assert file.path.name in text and str(file.sha256) in text
    written = modelfile(files(tmp_path), "vicuna_v1")
    assert "FROM ./m-Q4_K_M.gguf\nFROM ./mmproj-m-F16.gguf\n" in written
    assert 'PARAMETER stop "</s>"' in written
    assert "USER: {{ .Prompt }} ASSISTANT: {{ .Response }}</s>" in written
    assert "TEMPLATE" not in modelfile(files(tmp_path), None)


@pytest.mark.parametrize("name", FORMATS)
def test_ollamas_template_writes_what_prompts_render(name: str) -> None:
    form = FORMATS[name]
    if not form.reads_question:
        return
    template = go_template(form)
    before, _, rest = template.partition("{{ .Response }}")
    system = form.system_open + form.system + form.system_close if form.system else ""
    start = before.index("{{ if .System }}")
    end = before.index("{{ end }}") + len("{{ end }}")
    written = before[:start] + system + before[end:]
    written = written.replace("{{ .Prompt }}", "Q").removesuffix(form.answer_open)
    assert written == prompt_text(render(talk(("user", "Q")), form))
    assert rest == form.answer_close


def test_a_persons_own_files_are_never_replaced(tmp_path: Path) -> None:
    facts = {"prompt_format": "vicuna_v1"}
    assert len(write_beside(tmp_path, "m", files(tmp_path), facts)) == 2
    assert len(write_beside(tmp_path, "m", files(tmp_path), facts)) == 2  # its own
    (tmp_path / "README.md").write_text("mine")
    assert write_beside(tmp_path, "m", files(tmp_path), facts) == [tmp_path / "Modelfile"]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "README.md"]


def test_licence_and_base_model_are_read_from_the_sources_card(tmp_path: Path) -> None:
    text = "---\nlicense: llama2\ntags:\n- a\nbase_model: 'org/x'\n---\n# Title\nlicense: other\n"
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path) == {"license": "llama2", "base_model": "org/x"}
    (tmp_path / "README.md").write_text("no header")
    assert front_matter(tmp_path) == {} == front_matter(tmp_path / "nowhere")


def answer(logits: list[float], ids: list[int], tokens: list[int]) -> Answer:
    return Answer(list(ids), np.array(logits, np.float32), tokens)


@pytest.mark.parametrize(
    ("kind", "change", "ids", "tokens", "verdict"),
    [
        ("F32", 0.0, [1, 2], [4, 5], "equal"),
        ("F32", 4e-3, [1, 2], [4, 5], "equal"),
        ("F32", 0.5, [1, 2], [4, 5], "different"),
        ("F32", 0.0, [1, 3], [4, 5], "different"),
        ("Q4_K_M", 0.5, [1, 2], [4, 6], "close"),
        ("Q4_K_M", 9.0, [1, 2], [4, 6], "different"),
        ("Q8_0", 0.0, [1, 2], [4, 6], "close"),
    ],
)
def test_the_verdict_of_a_check(
    tmp_path: Path, kind: str, change: float, ids: list[int], tokens: list[int], verdict: str
) -> None:
    expected = answer([1.0, 2.0, 3.0], [1, 2], [4, 5])
    ours = answer([1.0 + change, 2.0, 3.0], ids, tokens)
    file = ConvertedFile(tmp_path / "m.gguf", "text", kind, 1, None)
    found = compare(file, tmp_path, [ours], [expected])
    assert found.verdict == verdict
    assert found.max_logit_difference == pytest.approx(change, abs=1e-6)
    assert found.same_ids == int(ids == [1, 2]) and found.same_answers == int(tokens == [4, 5])
