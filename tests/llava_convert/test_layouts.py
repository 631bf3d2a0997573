"""Every layout of a source gives the files that the same weights give in llava-hf's layout."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llava_cli.errors import LlavaError, ModelInvalid, UsageError
from llava_convert import ConvertResult, Extras, convert

Tensors = dict[str, Any]
WEIGHTS = "model.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
             "tokenizer.model", "chat_template.jinja")  # fmt: skip


def original_name(name: str) -> str:
    """The original code's name of a llava-hf tensor."""
    for pattern, target in (
        (r"language_model\.model\.", "model."),
        (r"language_model\.lm_head\.", "lm_head."),
        (r"multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
        (r"vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"image_newline", "model.image_newline"),
    ):
        if re.match(pattern, name):
            return re.sub("^" + pattern, target, name)
    raise AssertionError(name)


def original_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """config.json as the original code writes it."""
    config = json.loads((folder / "config.json").read_text())
    return {
        **config["text_config"],
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": 64,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048,
        "use_mm_proj": True,
        **changes,
    }


def copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copy(source / name, target)


def write_tower(source: Path, folder: Path) -> Path:
    """The tower alone, as transformers saves it."""
    from transformers import CLIPVisionModel, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(source)
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    tower.save_pretrained(folder)
    size = {"height": 56, "width": 56}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56},
             "crop_size": size, "do_center_crop": True, "resample": 3,
             "image_mean": [0.48145466, 0.4578275, 0.40821073],
             "image_std": [0.26862954, 0.26130258, 0.27577711]}
        )
    )  # fmt: skip
    return folder


def write_original(
    source: Path, folder: Path, *, tower: bool = True, form: str = "safetensors", **changes: Any
) -> Path:
    """The same weights in the original code's layout."""
    import torch

    copy_tokenizer(source, folder)
    tensors = {original_name(k): v for k, v in load_file(source / WEIGHTS).items()}
    if not tower:
        tensors = {k: v for k, v in tensors.items() if "vision_tower" not in k}
    (folder / "config.json").write_text(json.dumps(original_config(source, **changes)))
    if form == "safetensors":
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    elif form == "bin":
        torch.save(as_torch(tensors), folder / "pytorch_model.bin")
    else:
        names = sorted(tensors)
        places = {}
        for number in range(2):
            file = f"pytorch_model-{number + 1:05}-of-00002.bin"
            part = {name: tensors[name] for name in names[number::2]}
            torch.save(as_torch(part), folder / file)
            places |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": places}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def as_torch(tensors: Tensors) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}


def write_language_model(source: Path, folder: Path, **changes: Any) -> Path:
    """The language model alone, as transformers saves it: a base such as Vicuna."""
    copy_tokenizer(source, folder)
    tensors = load_file(source / WEIGHTS)
    plain = {original_name(k): v for k, v in tensors.items() if k.startswith("language_model.")}
    plain |= changes
    save_file(plain, folder / WEIGHTS, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())["text_config"]
    config["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llava-hf, vicuna_v1, pad: what the original layouts below hold too. Read only."""
    return Path(tiny.build(tmp_path_factory.mktemp("layouts") / "model", tokenizer="spm"))


@pytest.fixture(scope="module")
def tower(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(model, tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    return run(model, tmp_path_factory.mktemp("reference"))


def run(source: Path, out: Path, **extras: Any) -> ConvertResult:
    return convert(
        source, out, outtypes=["f32"], mmproj_outtype="f32", name="m", extras=Extras(**extras)
    )


def same(ours: ConvertResult, reference: ConvertResult) -> bool:
    return [f.sha256 for f in ours.files] == [f.sha256 for f in reference.files]


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded bin"])
def test_a_whole_original_checkpoint(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path, form: str
) -> None:
    folder = write_original(model, tmp_path / "original", form=form)
    assert same(run(folder, tmp_path / "out", vision_tower=tower), reference)


def test_a_checkpoint_without_its_tower(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path
) -> None:
    folder = write_original(model, tmp_path / "original", tower=False)
    with pytest.raises(ModelInvalid, match="openai/clip-vit-large-patch14-336") as caught:
        run(folder, tmp_path / "out")
    assert "--vision-tower" in caught.value.hint
    assert same(run(folder, tmp_path / "out", vision_tower=tower), reference)


@pytest.mark.parametrize("trained", [True, False])
def test_a_tower_in_the_checkpoint_counts_only_where_it_was_trained(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path, trained: bool
) -> None:
    folder = write_original(model, tmp_path / "original", unfreeze_mm_vision_tower=trained)
    tensors = load_file(folder / WEIGHTS)
    name = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    tensors[name] += 1
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert same(run(folder, tmp_path / "out", vision_tower=tower), reference) != trained


def test_a_tower_that_is_not_known_by_its_shape_must_be_named(model: Path, tmp_path: Path) -> None:
    folder = write_original(model, tmp_path / "original")
    with pytest.raises(ModelInvalid, match="64 wide, 3 layers"):
        run(folder, tmp_path / "out")


def test_a_clip_large_inside_the_checkpoint_needs_no_name() -> None:
    from llava_convert.tensors import constant
    from llava_convert.towers import choose_tower

    prefix = "vision_tower.vision_model."
    shapes = {
        "embeddings.class_embedding": (1024,),
        "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "embeddings.position_embedding.weight": (577, 1024),
        "encoder.layers.0.mlp.fc1.weight": (4096, 1024),
        **{f"encoder.layers.{n}.layer_norm1.bias": (1024,) for n in range(24)},
    }
    tensors = {prefix + n: constant(n, np.empty(s, np.float32)) for n, s in shapes.items()}
    found = choose_tower({"mm_vision_select_layer": -2}, tensors, None)
    assert found.kind == "clip" and found.feature_layer == -2
    assert found.config["image_size"] == 336 and found.config["num_attention_heads"] == 16
    assert found.preprocessor["size"] == {"shortest_edge": 336}


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("prefix", ["model.", "", "base_model.model.model."])
def test_a_projector_over_its_base(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path, form: str, prefix: str
) -> None:
    import torch

    base = write_language_model(model, tmp_path / "base")
    folder = tmp_path / "projector"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original_config(model)))
    parts = {
        original_name(k).replace("model.", prefix, 1): v
        for k, v in load_file(model / WEIGHTS).items()
        if k.startswith("multi_modal_projector.")
    }
    if form == "bin":
        torch.save(as_torch(parts), folder / "mm_projector.bin")
    else:
        save_file(parts, folder / "mm_projector.safetensors", {"format": "pt"})
    with pytest.raises(ModelInvalid, match="no language model") as caught:
        run(folder, tmp_path / "out", vision_tower=tower)
    assert "--base" in caught.value.hint
    assert same(run(folder, tmp_path / "out", base=base, vision_tower=tower), reference)


@pytest.mark.parametrize("whole", [True, False])
def test_a_projector_that_brings_new_tokens(
    model: Path, tower: Path, reference: ConvertResult, tmp_path: Path, whole: bool
) -> None:
    """mm_use_im_start_end: the embedding has two rows more, stored whole or alone."""
    import torch

    tensors = load_file(model / WEIGHTS)
    name = "language_model.model.embed_tokens.weight"
    short = {
        "model.embed_tokens.weight": tensors[name][:-2],
    }
    base = write_language_model(model, tmp_path / "base", **short)
    folder = tmp_path / "projector"
    copy_tokenizer(model, folder)
    (folder / "config.json").write_text(json.dumps(original_config(model)))
    parts = {original_name(k): v for k, v in tensors.items() if k.startswith("multi_modal")}
    parts["model.embed_tokens.weight"] = tensors[name] if whole else tensors[name][-2:]
    torch.save(as_torch(parts), folder / "mm_projector.bin")
    assert same(run(folder, tmp_path / "out", base=base, vision_tower=tower), reference)


def test_delta_weights(model: Path, tower: Path, tmp_path: Path) -> None:
    """target = delta + base; the base has fewer rows, the projector is the delta's own."""
    draw = np.random.default_rng(1)
    tensors = load_file(model / WEIGHTS)
    base, delta = {}, {}
    for name, value in tensors.items():
        # whole 64ths, so that sums are exact; + 0.0 because -x + x is never -0.0
        value = (np.round(value * 64) / 64 + 0.0).astype(np.float32)
        tensors[name] = value
        if not name.startswith("language_model."):
            delta[original_name(name)] = value
            continue
        part = (draw.integers(-64, 64, value.shape) / 64).astype(np.float32)
        full = value.ndim == 2 and value.shape[0] == tensors[
            "language_model.lm_head.weight"].shape[0]  # fmt: skip
        kept = part[:-3] if full else part
        base[original_name(name)] = kept
        summed = value.copy()
        summed[: len(kept)] -= kept
        delta[original_name(name)] = summed
    exact = tmp_path / "exact"
    shutil.copytree(model, exact)
    save_file(tensors, exact / WEIGHTS, {"format": "pt"})
    folder = write_original(model, tmp_path / "delta")
    save_file(delta, folder / WEIGHTS, {"format": "pt"})
    base_folder = write_language_model(model, tmp_path / "base", **base)
    ours = run(folder, tmp_path / "a", base=base_folder, vision_tower=tower)
    rounded = write_tower(exact, tmp_path / "rounded tower")
    assert not same(ours, run(exact, tmp_path / "b"))  # the given tower is not the rounded one
    ours = run(folder, tmp_path / "a", base=base_folder, vision_tower=rounded)
    assert same(ours, run(exact, tmp_path / "b"))
    assert any("delta" in note for note in ours.notes)


def close(ours: ConvertResult, reference: ConvertResult, gguf: Callable[..., Any]) -> None:
    """Equal up to the rounding of one sum, and not equal to the base."""
    for mine, theirs in zip(ours.files, reference.files, strict=True):
        _, values, _ = gguf(mine.path)
        _, expected, _ = gguf(theirs.path)
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            assert np.abs(values[name] - value).max() <= 2e-6 * max(np.abs(value).max(), 1), name


def write_lora(source: Path, folder: Path, language_only: bool, **settings: Any) -> Path:
    """An adapter made by peft; gives the folder of the merged model, made by peft too."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    torch.manual_seed(5)
    kind = AutoModelForCausalLM if language_only else LlavaForConditionalGeneration
    model = kind.from_pretrained(source)
    modules = ["q_proj", "v_proj", "down_proj"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        peft = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=12, target_modules=modules, **settings)
        )
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    peft.save_pretrained(folder)
    merged = folder.with_name(folder.name + " merged")
    peft.merge_and_unload().save_pretrained(merged)
    return merged


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param(
            {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
            id="patterns",
        ),
        pytest.param({"modules_to_save": ["lm_head"]}, id="a module trained whole"),
    ],
)
def test_a_lora_of_a_llava_hf_model(
    model: Path, tmp_path: Path, settings: dict[str, Any], gguf: Callable[..., Any]
) -> None:
    merged = write_lora(model, tmp_path / "lora", False, **settings)
    for file in model.iterdir():
        if not (merged / file.name).exists():
            shutil.copy(file, merged)
    shutil.copy(model / "config.json", merged)
    with pytest.raises(ModelInvalid, match="LoRA adapter of") as caught:
        run(tmp_path / "lora", tmp_path / "out")
    assert "--base" in caught.value.hint
    ours = run(tmp_path / "lora", tmp_path / "out", base=model)
    close(ours, run(merged, tmp_path / "reference"), gguf)
    assert not same(ours, run(model, tmp_path / "plain"))


def test_an_original_lora_with_what_was_trained_beside_it(
    model: Path, tower: Path, tmp_path: Path, gguf: Callable[..., Any]
) -> None:
    import torch

    base = write_language_model(model, tmp_path / "base")
    merged = write_lora(base, tmp_path / "lora", True)
    copy_tokenizer(model, tmp_path / "lora")
    (tmp_path / "lora" / "config.json").write_text(json.dumps(original_config(model)))
    rest = {
        "base_model.model." + original_name(k): v
        for k, v in load_file(model / WEIGHTS).items()
        if k.startswith("multi_modal_projector.")
    }
    torch.save(as_torch(rest), tmp_path / "lora" / "non_lora_trainables.bin")
    whole = tmp_path / "whole"
    shutil.copytree(model, whole)
    tensors = load_file(whole / WEIGHTS)
    back = {original_name(k): k for k in tensors}
    tensors |= {back[name]: value for name, value in load_file(merged / WEIGHTS).items()}
    save_file(tensors, whole / WEIGHTS, {"format": "pt"})
    ours = run(tmp_path / "lora", tmp_path / "out", base=base, vision_tower=tower)
    close(ours, run(whole, tmp_path / "reference"), gguf)


def test_a_lora_over_the_wrong_base_is_refused(
    model: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    write_lora(model, tmp_path / "lora", False)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (other / "config.json").write_text(json.dumps(config))
    tensors = load_file(other / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if "model.layers.1." not in k}, other / WEIGHTS)
    with pytest.raises(ModelInvalid, match="does not have"):
        run(tmp_path / "lora", tmp_path / "out", base=other)


@pytest.mark.parametrize("setting", ["use_dora", "fan_in_fan_out"])
def test_adapters_that_are_no_plain_sum_are_refused(
    model: Path, tmp_path: Path, setting: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", setting: True}))
    with pytest.raises(ModelInvalid, match="merge"):
        try:
            run(tmp_path, tmp_path / "out", base=model)
        except LlavaError as error:
            raise ModelInvalid(f"{error.message} {error.hint}") from error


def test_a_linear_projector_of_the_first_llava(
    tiny: ModuleType, tower: Path, tmp_path: Path, mmproj_features: Any, torch_features: Any,
    pixels: Any,
) -> None:  # fmt: skip
    """W alone; transformers has no such thing: W, then identity, without activation."""
    from transformers import LlavaForConditionalGeneration

    source = tiny.build(tmp_path / "source", tokenizer="spm", connector="linear")
    hf = load_file(source / WEIGHTS)
    hf["multi_modal_projector.linear_2.weight"] = np.eye(64, dtype=np.float32)
    hf["multi_modal_projector.linear_2.bias"] = np.zeros(64, np.float32)
    save_file(hf, source / WEIGHTS, {"format": "pt"})
    tensors = {original_name(k): v for k, v in hf.items() if "linear_2" not in k}
    for kind in ("weight", "bias"):
        tensors[f"model.mm_projector.{kind}"] = tensors.pop(f"model.mm_projector.0.{kind}")
    folder = tmp_path / "original"
    copy_tokenizer(source, folder)
    config = original_config(source, mm_projector_type="linear")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    own_tower = write_tower(source, tmp_path / "own tower")
    ours = run(folder, tmp_path / "out", vision_tower=own_tower)
    assert LlavaForConditionalGeneration.from_pretrained(source) is not None
    features = mmproj_features(ours.files[1].path, pixels)
    assert np.abs(features - torch_features(source, pixels)).max() < 2e-5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "vicuna_v1"),
        ({"mm_use_im_start_end": True}, "llava_v0"),
        ({"llava_prompt_format": "llava_llama_2"}, "llava_llama_2"),
        ({"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral"},
         "mistral_instruct"),
    ],
)  # fmt: skip
def test_the_prompt_format_is_told_or_taken_from_the_kind_of_model(
    model: Path, tower: Path, tmp_path: Path, gguf: Callable[..., Any], changes: dict[str, Any],
    expected: str,
) -> None:  # fmt: skip
    folder = write_original(model, tmp_path / "original", **changes)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    result = run(folder, tmp_path / "out", vision_tower=tower)
    assert gguf(result.files[0].path)[0]["llava.prompt_format"] == expected
    assert any(expected in note for note in result.notes) != ("llava_prompt_format" in changes)
    named = run(folder, tmp_path / "out", vision_tower=tower, prompt_format="plain")
    assert gguf(named.files[0].path)[0]["llava.prompt_format"] == "plain"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["LlavaMptForCausalLM"], "model_type": "llava_mpt"}, "LlavaMpt"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mlp3x_gelu"),
        ({"mm_projector_type": "identity"}, "identity"),
        ({"mm_vision_select_feature": "cls_patch"}, "full"),
        ({"image_aspect_ratio": "anyres"}, "flat"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer"),
        ({"mm_vision_select_layer": -9}, "outside"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused_with_the_reason(
    model: Path, tower: Path, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    folder = write_original(model, tmp_path / "original", **changes)
    with pytest.raises(ModelInvalid, match=word):
        run(folder, tmp_path / "out", vision_tower=tower)


def test_a_tower_is_not_given_twice(model: Path, tower: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its own vision tower"):
        run(model, tmp_path / "out", vision_tower=tower)


def test_an_unknown_prompt_format_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known"):
        try:
            run(model, tmp_path / "out", prompt_format="nonsense")
        except LlavaError as error:
            raise UsageError(f"{error.message} {error.hint}") from error


def test_pinpoints_of_the_original_are_turned_into_transformers_order() -> None:
    from llava_convert.originals import pinpoints

    assert pinpoints([[336, 672], [1008, 336]], 336) == [[672, 336], [336, 1008]]
    grid = pinpoints("(1x1),...,(2x3)", 384)
    assert grid == [[384 * b, 384 * a] for a in (1, 2) for b in (1, 2, 3)]
