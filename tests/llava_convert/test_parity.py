"""Converted models answer as transformers' own classes, processors and `generate` do.

Every family of language models, LLaVA-1.5 and 1.6 (tiles), CLIP and SigLIP; a wide and a tall
picture. The other side shares no code with this project.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llava_cli import models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.images import Image
from llava_cli.prompts import FORMATS, prompt_text, render
from llava_convert import convert
from tests.llava_convert.commands import llava
from tests.llava_convert.families import build

EQUAL = 5e-3
"""How far float32 logits may lie apart."""
SIZES = ((90, 60), (50, 120))
QUESTION = "what is unusual here?"
ANSWER = 8


class Theirs:
    """A checkpoint in transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder).float().eval()
        self.tokens: Any = AutoTokenizer.from_pretrained(folder)
        self.images: Any = AutoImageProcessor.from_pretrained(folder)
        self.image_id: int = self.model.config.image_token_id

    def answer(self, picture: Any, prompt: str) -> tuple[list[int], Any, list[int]]:
        """Ids of the prompt, logits (V,) of the first token, greedy tokens without the end."""
        import torch

        values = dict(self.images(picture, return_tensors="pt"))
        ids = self.tokens(prompt).input_ids
        with torch.no_grad():
            found = self.model.model.get_image_features(**values)
            count = len(torch.cat(list(getattr(found, "pooler_output", found))))
            place = ids.index(self.image_id)
            whole = torch.tensor([[*ids[:place], *[self.image_id] * count, *ids[place + 1 :]]])
            out = self.model.generate(
                input_ids=whole, attention_mask=torch.ones_like(whole), max_new_tokens=ANSWER,
                do_sample=False, return_dict_in_generate=True, output_logits=True, **values,
            )  # fmt: skip
        said = out.sequences[0, whole.shape[1] :].tolist()
        said = said[: said.index(2)] if 2 in said else said
        return ids, out.logits[0][0].numpy(), said


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("kind", ["Llava", "LlavaNext"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3", "phi"])
def test_ids_logits_and_greedy_answers_equal_transformers(
    tiny: ModuleType, tmp_path: Path, llama_cpp_api: Any, family: str, kind: str, tower: str
) -> None:
    from llava_cli.engines.gguf.engine import GgufEngine

    folder = build(tiny, tmp_path / "source", family, tower, kind)
    convert(folder, tmp_path / "out", outtypes=["f32"], mmproj_outtype="f32")
    theirs = Theirs(folder)
    engine = GgufEngine(models.resolve(str(tmp_path / "out")), threads=1)
    try:
        for seed, size in enumerate(SIZES):
            picture = tiny.picture(*size, seed)
            asked = Conversation().add("user", Image.from_pil(picture), QUESTION)
            prompt = prompt_text(render(asked, FORMATS["vicuna_v1"]))
            ids, logits, said = theirs.answer(picture, prompt)
            ours = engine.prompt_ids(asked)
            assert [theirs.image_id if i == "image" else i for i in ours] == ids
            assert np.abs(logits).max() > 1
            assert np.abs(np.array(engine.first_logits(asked)) - logits).max() <= EQUAL
            tokens = engine.generate(asked, Sampling(max_tokens=ANSWER))
            assert [token.id for token in tokens if token.id is not None] == said
    finally:
        engine.close()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("named", [True, False])
def test_check_proves_a_model_with_tiles_equal(
    tiny: ModuleType, tmp_path: Path, form: str, named: bool, llama_cpp_api: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also where the weights are a pickle, and where nothing says how it wants to be asked."""
    folder = build(tiny, tmp_path / "source", "mistral", "clip", "LlavaNext")
    if form == "bin":
        import torch
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    if not named:
        config = json.loads((folder / "config.json").read_text())
        del config["llava_prompt_format"]
        (folder / "config.json").write_text(json.dumps(config))
    arguments = ["convert", str(folder), "--json", "-o", str(tmp_path / "out"), "--outtype", "f32",
                 "--mmproj-outtype", "f32", "--check", "--threads", "1"]  # fmt: skip
    llava(*arguments)
    found = json.loads(capsys.readouterr().out)["check"]
    assert found["verdict"] == "equal"
    (file,) = found["files"]
    assert file["prompts"] == file["same_ids"] == file["same_answers"] == 4
