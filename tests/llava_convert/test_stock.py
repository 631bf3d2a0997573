"""The files answer in llama.cpp's own tools: its mtmd library reads prompt and picture by itself.

Nothing of our engine takes part: what `llama-mtmd-cli` calls is called here. Its encoder is right
for SigLIP towers; CLIP's class position it puts behind the patches, so that such a tower sees
another picture there than transformers, and LLaVA-1.6's tiles it packs in another order.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llava_cli import models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.layouts.chat_templates import fitting_template
from llava_cli.images import Image
from llava_cli.prompts import FORMATS, prompt_text, render
from llava_convert import convert
from tests.llava_convert.families import build

QUESTION = "what is unusual here?"
MARKER = "<__media__>"
COUNT = 8


def stock_answer(model: Any, mmproj: Path, picture: Any, prompt: str) -> tuple[list[int], int]:
    """Greedy tokens without the end, and how many positions the prompt took."""
    api: Any = model.api
    mtmd: Any = api.mtmd_cpp
    settings = mtmd.mtmd_context_params_default()
    settings.warmup, settings.use_gpu, settings.n_threads = False, False, 1
    projector = mtmd.mtmd_init_from_file(str(mmproj).encode(), model.model, settings)
    assert projector, "the mmproj does not load"
    wanted = api.llama_context_default_params()
    wanted.n_ctx, wanted.n_threads, wanted.n_threads_batch = 1024, 1, 1
    context = api.llama_init_from_model(model.model, wanted)
    height, width, _ = picture.shape
    raw = picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(mtmd.mtmd_bitmap_init(width, height, raw))
    chunks, past = mtmd.mtmd_input_chunks_init(), api.llama_pos(0)
    text = mtmd.mtmd_input_text()
    text.text, text.text_len = prompt.encode(), len(prompt.encode())
    text.add_special = text.parse_special = True
    batch = api.llama_batch_init(1, 0, 1)
    try:
        assert mtmd.mtmd_tokenize(projector, chunks, ctypes.byref(text), bitmaps, 1) == 0
        assert not mtmd.mtmd_helper_eval_chunks(
            projector, context, chunks, 0, 0, 64, True, ctypes.byref(past)
        )
        read, answer = past.value, list[int]()
        size = api.llama_vocab_n_tokens(model.vocab)
        for place in range(read, read + COUNT):
            logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (size,))
            assert np.isfinite(logits).all()
            token = int(logits.argmax())
            if api.llama_vocab_is_eog(model.vocab, token):
                break
            answer.append(token)
            batch.n_tokens, batch.token[0], batch.pos[0] = 1, token, place
            batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, 1
            assert api.llama_decode(context, batch) == 0
        return answer, read
    finally:
        api.llama_batch_free(batch)
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmaps[0])
        api.llama_free(context)
        mtmd.mtmd_free(projector)


@pytest.mark.parametrize("size", [56, 90])
def test_a_siglip_model_answers_in_stock_llama_cpp_as_here(
    tiny: ModuleType, tmp_path: Path, llama: Any, size: int
) -> None:
    from llava_cli.engines.gguf.engine import GgufEngine

    folder = build(tiny, tmp_path / "source", "llama", "siglip")
    text, mmproj = convert(folder, tmp_path / "out", outtypes=["f32"], mmproj_outtype="f32").files
    picture = tiny.picture(size, size)
    asked = Conversation().add("user", Image.from_pil(picture), QUESTION)
    engine = GgufEngine(models.resolve(str(tmp_path / "out")), threads=1)
    try:
        ours = [token.id for token in engine.generate(asked, Sampling(max_tokens=COUNT))]
        length = len(engine.prompt_ids(asked)) - 1 + 16
    finally:
        engine.close()
    prompt = prompt_text(render(asked, FORMATS["vicuna_v1"]), MARKER)
    answer, read = stock_answer(llama(text.path), mmproj.path, np.array(picture), prompt)
    assert answer == [token for token in ours if token is not None]
    assert len(answer) > 2 and read == length


@pytest.mark.parametrize(("kind", "tokens"), [("Llava", 16), ("LlavaNext", 16 * 5)])
def test_a_clip_model_loads_and_answers_in_stock_llama_cpp(
    tiny: ModuleType, tmp_path: Path, llama: Any, kind: str, tokens: int
) -> None:
    """1.6 with its pinpoints: two tiles by two, and the whole picture."""
    folder = build(tiny, tmp_path / "source", "llama", "clip", kind)
    text, mmproj = convert(folder, tmp_path / "out", outtypes=["q4_k_m"]).files
    picture = np.array(tiny.picture(112, 112))
    model = llama(text.path)
    words = "USER: {}\nwhat is unusual here? ASSISTANT:"
    answer, read = stock_answer(model, mmproj.path, picture, words.format(MARKER))
    before, after = words.split("{}")
    spoken = len(model.ids(before, add_special=True)) + len(model.ids(after))
    assert read == spoken + tokens
    assert len(answer) > 0


@pytest.mark.parametrize(
    "name",
    ["vicuna_v1", "llava_v1", "v1_mmtag", "llama_2", "llava_llama_2", "mistral_instruct", "mpt",
     "chatml_direct"],
)  # fmt: skip
def test_stock_tools_know_the_template_without_running_jinja(
    tmp_path: Path, llama_cpp_api: Any, name: str
) -> None:
    """`llama-mtmd-cli` stops at a template that it cannot place, unless it is given --jinja."""
    api = llama_cpp_api.api
    template = fitting_template(tmp_path, name)
    assert template is not None
    messages = (api.llama_chat_message * 1)(api.llama_chat_message(b"user", b"odd?"))
    written = ctypes.create_string_buffer(1000)
    size = api.llama_chat_apply_template(template.encode(), messages, 1, True, written, 1000)
    assert size > 0
    form = FORMATS[name]
    for word in (form.user_open.split("\n")[0].strip(), "odd?", form.header.split("\n")[0]):
        assert word.encode() in written.raw[:size]
