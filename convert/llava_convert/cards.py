"""What lies beside converted files for people and programs: a model card and an Ollama Modelfile.

The card's front matter is what the Hub reads. A file of a person's own is never replaced: what this
module writes carries a line that says so. Not here: uploading (`hub.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_cli import __version__
from llava_cli.prompts import FORMATS, PromptFormat
from llava_cli.writing import write_bytes
from llava_convert.gguf_file import SUFFIX, disk_errors, remove_leftovers
from llava_convert.result import ConvertedFile

MARK = "<!-- written by llava convert: remove this line to keep your changes -->"
MODELFILE_MARK = "# written by llava convert: remove this line to keep your changes"


def write_beside(
    out: Path, name: str, files: Sequence[ConvertedFile], facts: Mapping[str, str]
) -> list[Path]:
    """README.md and Modelfile in the folder of the files; gives those that were written."""
    written = []
    for target, text, mark in (
        (out / "README.md", card(name, files, facts), MARK),
        (out / "Modelfile", modelfile(files, facts.get("prompt_format")), MODELFILE_MARK),
    ):
        if target.exists() and mark not in target.read_text(encoding="utf-8", errors="replace"):
            continue
        aside = target.with_name(f".{target.name}.{os.getpid()}{SUFFIX}")
        with disk_errors(target):
            remove_leftovers(target)
            write_bytes(target, text.encode(), aside)
        written.append(target)
    return written


def card(name: str, files: Sequence[ConvertedFile], facts: Mapping[str, str]) -> str:
    """A model card for the Hub."""
    header = ["---", "pipeline_tag: image-text-to-text", "library_name: gguf", "tags:"]
    header += [f"- {tag}" for tag in ("llava", "gguf", "llama.cpp", "vision")]
    for key in ("license", "base_model", "language"):
        if facts.get(key):
            header.append(f"{key}: {facts[key]}")
    rows = [
        f"| [{f.path.name}]({f.path.name}) | {f.role} | {f.type} | {f.bytes / 1e6:,.1f} MB | "
        f"`{f.sha256}` |"
        for f in files
    ]
    text = next(file for file in files if file.role == "text").path.name
    mmproj = next(file for file in files if file.role == "mmproj").path.name
    lines = [
        *header, "---", "", MARK, "", f"# {name}, for llama.cpp", "",
        f"Converted from {facts.get('kind', 'a LLaVA checkpoint')} by llava-cli {__version__}. "
        "The text model needs its `mmproj` to see pictures: keep both in one folder.", "",
        "| file | role | type | size | sha256 |", "|---|---|---|---|---|", *rows, "",
        "## Use", "", "```sh", f'llava ask -m {text} photo.jpg "what is unusual here?"',
        f"llama-mtmd-cli --jinja -m {text} --mmproj {mmproj} \\",
        "    --image photo.jpg -p 'what is unusual here?'",
        "ollama create NAME -f Modelfile", "```", "",
    ]  # fmt: skip
    if facts.get("prompt_format"):
        lines += [f"Prompt format: `{facts['prompt_format']}` (also in the files' metadata).", ""]
    return "\n".join(lines)


def modelfile(files: Sequence[ConvertedFile], prompt_format: str | None) -> str:
    """How Ollama loads the pair; the smallest text model is taken."""
    text = min((f for f in files if f.role == "text"), key=lambda f: f.bytes)
    mmproj = next(f for f in files if f.role == "mmproj")
    lines = [MODELFILE_MARK, f"FROM ./{text.path.name}", f"FROM ./{mmproj.path.name}"]
    form = FORMATS.get(prompt_format or "")
    if form is not None:
        lines.append(f'TEMPLATE """{go_template(form)}"""')
        if form.system:
            lines.append(f'SYSTEM """{form.system}"""')
        lines += [f'PARAMETER stop "{_escaped(stop)}"' for stop in form.stop]
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"


def go_template(form: PromptFormat) -> str:
    """One exchange in Ollama's template language."""
    system = (
        f"{{{{ if .System }}}}{form.system_open}{{{{ .System }}}}{form.system_close}{{{{ end }}}}"
    )
    user = form.user_open + (system if form.system_in_user else "")
    question = "{{ .Prompt }}" if form.reads_question else ""
    answer = f"{form.answer_open}{{{{ .Response }}}}{form.answer_close}"
    before = "" if form.system_in_user else system
    # what follows .Response is not sent, but tells where the answer begins
    return f"{before}{user}{question}{form.user_close}{form.header}{answer}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
