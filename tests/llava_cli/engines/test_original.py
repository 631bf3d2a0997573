"""Checkpoints of the original LLaVA code answer as their llava-hf conversions do, in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from safetensors.numpy import load_file, save_file

from llava_cli import engines, models
from llava_cli.cli import main
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.layouts.source import Extras
from llava_cli.engines.layouts.sources import open_source
from llava_cli.errors import ModelError, ModelInvalid, ModelNotFound, OutOfMemory, UsageError
from llava_cli.images import Image
from llava_cli.models.facts import facts, weights
from llava_convert.hf_target import convert_to_hf
from tests import tiny
from tests.llava_convert.families import PINPOINTS, build
from tests.llava_convert.layouts import (
    WEIGHTS,
    as_torch,
    original_config,
    original_name,
    write_language_model,
    write_original,
    write_tower,
)

GREEDY = Sampling(max_tokens=8)
TOWER_NAME = "openai/clip-vit-large-patch14-336"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llava-hf, whose weights the original layouts below have, too."""
    folder = tmp_path_factory.mktemp("original") / "model"
    return tiny.build(folder, tokenizer="spm", gain=6.0)


@pytest.fixture(scope="module")
def tower(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(model, tmp_path_factory.mktemp("tower") / "tower")


@pytest.fixture
def cached_tower(tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tower in the Hub's cache, under the name that checkpoints give it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / ("models--" + TOWER_NAME.replace("/", "--"))
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    return Path(shutil.copytree(tower, repo / "snapshots" / ("0" * 40)))


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no hub"))


def converted(folder: Path, out: Path, **extras: Any) -> Path:
    convert_to_hf(open_source(folder, Extras(**extras)), out)
    return out


def asked(text: str = "what is unusual here?") -> Conversation:
    return Conversation().add("user", Image.from_pil(tiny.picture()), text)


def ids_of(folder: Path, **parts: Path) -> list[int | None]:
    """The tokens of a greedy answer."""
    named: dict[str, Any] = {name: str(path) for name, path in parts.items()}
    files = models.resolve(str(folder), **named)
    engine = engines.load(files, threads=1, device="cpu")
    try:
        return [token.id for token in engine.generate(asked(), GREEDY)]
    finally:
        engine.close()


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded bin"])
def test_ask_answers_as_the_llava_hf_conversion_does(
    model: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    original = write_original(model, tmp_path / "original", form=form)
    reference = converted(original, tmp_path / "hf", vision_tower=tower)
    picture = tmp_path / "picture.png"
    tiny.picture().save(picture)

    def ask(folder: Path, *more: str) -> Any:
        code = main(
            ["ask", "-m", str(folder), "--engine", "torch", "--device", "cpu", "--json",
             "--no-log", "--max-tokens", "8", "--top-logprobs", "5", *more, str(picture), "why?"]
        )  # fmt: skip
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    ours, theirs = ask(original, "--vision-tower", str(tower)), ask(reference)
    same = ("text", "prompt_format", "usage", "finish_reason")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    candidates = [[one["id"] for one in answer["first_token"]] for answer in (ours, theirs)]
    assert candidates[0] == candidates[1]
    assert ours["usage"]["image_tokens"] == 16 and ours["prompt_format"] == "vicuna_v1"
    assert ids_of(original, vision_tower=tower) == ids_of(reference)


@pytest.mark.parametrize(
    ("family", "architecture", "kind"),
    [
        ("mistral", "LlavaMistralForCausalLM", "llava_mistral"),
        ("qwen2", "LlavaQwenForCausalLM", "llava_qwen"),
        ("phi3", "LlavaPhi3ForCausalLM", "llava_phi3"),
    ],
)
def test_other_language_models_answer_too(
    tmp_path: Path, family: str, architecture: str, kind: str
) -> None:
    source = build(tiny, tmp_path / "source", family)
    original = write_original(
        source, tmp_path / "original", architectures=[architecture], model_type=kind,
        llava_prompt_format="vicuna_v1",
    )  # fmt: skip
    tower = write_tower(source, tmp_path / "tower")
    reference = converted(original, tmp_path / "hf", vision_tower=tower)
    found = ids_of(original, vision_tower=tower)
    assert found == ids_of(reference) and len(found) > 1


def test_a_checkpoint_with_tiles_answers_as_llava_next(tmp_path: Path) -> None:
    source = build(tiny, tmp_path / "source", "mistral", kind="LlavaNext")
    original = write_original(
        source, tmp_path / "original", architectures=["LlavaMistralForCausalLM"],
        model_type="llava_mistral", image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=[[w, h] for h, w in PINPOINTS],
    )  # fmt: skip
    tower = write_tower(source, tmp_path / "tower")
    reference = converted(original, tmp_path / "hf", vision_tower=tower)
    found = ids_of(original, vision_tower=tower)
    assert found == ids_of(reference) and len(found) > 1


def test_a_projector_over_its_base(model: Path, tower: Path, tmp_path: Path, no_hub: None) -> None:
    import torch

    base = write_language_model(model, tmp_path / "base")
    folder = tmp_path / "projector"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original_config(model, _name_or_path="a/b")))
    parts = {
        original_name(name): value
        for name, value in load_file(model / WEIGHTS).items()
        if name.startswith("multi_modal_projector.")
    }
    torch.save(as_torch(parts), folder / "mm_projector.bin")
    with pytest.raises(ModelNotFound, match="trained on a/b") as caught:
        models.resolve(str(folder))
    assert caught.value.exit_code == 3 and "--base REF" in caught.value.hint
    whole = write_original(model, tmp_path / "whole")
    reference = converted(whole, tmp_path / "hf", vision_tower=tower)
    assert ids_of(folder, base=base, vision_tower=tower) == ids_of(reference)


def test_a_lora_with_its_projector_over_its_base(
    model: Path, tower: Path, tmp_path: Path, lora_of: Callable[..., Path]
) -> None:
    import torch

    base = write_language_model(model, tmp_path / "base")
    folder = lora_of(base, tmp_path / "lora")
    config = original_config(model, mm_vision_select_layer=-2)
    (folder / "config.json").write_text(json.dumps(config))
    rest = {
        "base_model.model." + original_name(name): value + 0.1
        for name, value in load_file(model / WEIGHTS).items()
        if name.startswith("multi_modal_projector.")
    }
    torch.save(as_torch(rest), folder / "non_lora_trainables.bin")
    reference = converted(folder, tmp_path / "hf", base=base, vision_tower=tower)
    found = ids_of(folder, base=base, vision_tower=tower)
    assert found == ids_of(reference)
    plain = converted(write_original(model, tmp_path / "p"), tmp_path / "q", vision_tower=tower)
    assert found != ids_of(plain)
    with pytest.raises(ModelInvalid, match="projector") as caught:  # not silently without it
        engines.load(models.resolve(str(plain)), device="cpu", adapter=folder)
    assert f"-m {folder} --base" in caught.value.hint


def test_a_lora_folder_over_a_llava_hf_base_is_a_model(
    model: Path, tmp_path: Path, lora_of: Callable[..., Path]
) -> None:
    settings = {"target_modules": r".*language_model.*\.(q_proj|k_proj|down_proj)"}
    folder = lora_of(model, tmp_path / "lora", **settings)
    engine = engines.load(models.resolve(str(model)), threads=1, device="cpu", adapter=folder)
    wanted = [token.id for token in engine.generate(asked(), GREEDY)]
    engine.close()
    assert ids_of(folder, base=model) == wanted


def test_a_tower_that_the_config_names_is_found_in_the_hubs_cache(
    model: Path, tower: Path, cached_tower: Path, tmp_path: Path
) -> None:
    original = write_original(model, tmp_path / "original", tower=False)
    files = models.resolve(str(original))
    assert (files.format, files.vision_tower) == ("original", cached_tower)
    assert ids_of(original) == ids_of(original, vision_tower=tower)
    assert models.resolve(str(original), vision_tower=TOWER_NAME).vision_tower == cached_tower


def test_a_missing_tower_is_exit_3_with_the_remedy(
    model: Path, tmp_path: Path, no_hub: None, capsys: pytest.CaptureFixture[str]
) -> None:
    original = write_original(model, tmp_path / "original", tower=False)
    picture = tmp_path / "picture.png"
    tiny.picture().save(picture)
    ask = ["ask", "-m", str(original), "--no-log", str(picture), "why?"]
    assert main(ask) == 3
    said = capsys.readouterr().err
    assert TOWER_NAME in said and f"--vision-tower {TOWER_NAME}" in said
    assert main([*ask, "--vision-tower", TOWER_NAME]) == 3
    assert f"hf download {TOWER_NAME}" in capsys.readouterr().err


def test_a_config_cannot_name_a_folder_of_this_machine(
    model: Path, tower: Path, tmp_path: Path, no_hub: None
) -> None:
    original = write_original(model, tmp_path / "original", tower=False, mm_vision_tower=str(tower))
    assert models.resolve(str(original)).vision_tower is None
    with pytest.raises(ModelError, match="does not hold its vision tower"):
        ids_of(original)


def test_a_prompt_format_that_was_guessed_is_told_and_can_be_named(
    model: Path, tower: Path, tmp_path: Path
) -> None:
    original = write_original(model, tmp_path / "llava-v1.6-mistral-mpt", mm_use_im_start_end=True)
    files = models.resolve(str(original), vision_tower=str(tower))
    notes: list[str] = []
    engine = engines.load(files, device="cpu", threads=1, note=notes.append)
    assert engine.prompt_format == "llava_v0"  # by its config, whatever its folder is called
    assert engine.files is files and "llava_v0 is taken" in notes[0]
    named = engines.load(
        files, device="cpu", threads=1, note=notes.append, prompt_format="vicuna_v1"
    )
    assert named.prompt_format == "vicuna_v1" and len(notes) == 1
    for one in (engine, named):
        one.close()


def test_a_pickle_that_holds_code_is_not_run(model: Path, tower: Path, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    original = write_original(model, tmp_path / "original")
    (original / WEIGHTS).unlink()
    (original / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Evil()}))
    with pytest.raises(ModelInvalid):
        ids_of(original, vision_tower=tower)
    assert not (tmp_path / "ran").exists()


def test_a_tensor_without_a_place_and_a_missing_one_are_named(
    model: Path, tower: Path, tmp_path: Path
) -> None:
    original = write_original(model, tmp_path / "original")
    tensors = load_file(original / WEIGHTS)
    extra = {**tensors, "model.mm_resampler.query": tensors["model.norm.weight"]}
    save_file(extra, original / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelInvalid, match="mm_resampler"):
        ids_of(original, vision_tower=tower)
    less = {name: value for name, value in tensors.items() if "layers.1.mlp.up" not in name}
    save_file(less, original / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelInvalid, match=r"layers.1.mlp.up_proj"):
        ids_of(original, vision_tower=tower)


def test_what_does_not_fit_is_said_before_it_is_read(
    model: Path, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_cli.engines import pytorch_setup

    original = write_original(model, tmp_path / "original", form="bin")
    monkeypatch.setattr(pytorch_setup, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(pytorch_setup, "_from_pretrained", None)
    with pytest.raises(OutOfMemory, match="for its weights alone") as caught:
        ids_of(original, vision_tower=tower)
    assert caught.value.exit_code == 6 and caught.value.hint


def test_show_tells_what_a_checkpoint_is_without_opening_its_pickles(
    model: Path, tower: Path, tmp_path: Path
) -> None:
    original = write_original(model, tmp_path / "o", form="sharded bin", torch_dtype="float32")
    found = facts(models.resolve(str(original), vision_tower=str(tower)))
    assert (found.architecture, found.tower.kind) == ("LlavaLlamaForCausalLM", TOWER_NAME)
    parameters, _ = weights(model)
    assert found.parameters == pytest.approx(parameters, rel=0.1)
    assert found.quantization == "float32" and found.memory_bytes > 2 * parameters


def test_parts_for_a_whole_model_are_refused(model: Path, tower: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a whole model") as caught:
        models.resolve(str(model), vision_tower=str(tower))
    assert "--vision-tower" in caught.value.hint
    with pytest.raises(ModelNotFound, match="--base: nobody/nothing is not on this disk"):
        models.resolve(str(write_original(model, tmp_path / "o")), base="nobody/nothing")


def test_the_gguf_engine_names_the_conversion(model: Path, tmp_path: Path) -> None:
    original = write_original(model, tmp_path / "original")
    with pytest.raises(ModelInvalid, match="holds no GGUF files") as caught:
        models.resolve(str(original), engine="gguf")
    assert "llava convert" in caught.value.hint
