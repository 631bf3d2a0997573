"""The tokenizer of an original checkpoint in llava-hf's form: with `<image>` as a token.

transformers does the work, because it is also what will read the result.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from llava_cli.errors import MissingDependency, ModelInvalid
from llava_convert.chat_templates import fitting_template

IMAGE = "<image>"


def write_tokenizer(folder: Path, target: Path, prompt_format: str | None) -> int:
    """Save it into `target`; gives the id of `<image>`."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependency(
            "a llava-hf folder is written with transformers, which is not installed",
            "pip install 'llava-cli[torch]'",
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:
        raise MissingDependency(
            f"the tokenizer needs a package that is missing: {error}",
            "pip install 'llava-cli[torch]'",
        ) from error
    except Exception as error:  # noqa: BLE001 - the Rust library raises bare Exception
        raise ModelInvalid(
            f"cannot read the tokenizer of {folder}: {error}", "fetch its files again"
        ) from error
    if IMAGE not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    number: int = tokenizer.get_vocab()[IMAGE]
    tokenizer.save_pretrained(target)
    for name in ("tokenizer.model", "generation_config.json"):  # transformers 5 drops the first
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    template = fitting_template(folder, prompt_format)
    if template:
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    return number
