"""A model reference becomes checked files, or one line that says what is wrong and what to do."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_cli import models
from llava_cli.errors import LlavaError, ModelInvalid, ModelNotFound

Writer = Callable[..., Path]
VICUNA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def refused(
    reference: str, said: str, kind: type[LlavaError] = ModelInvalid, **options: Any
) -> str:
    """The remedy of an error that says so."""
    with pytest.raises(kind, match=said) as caught:
        models.resolve(reference, **options)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.hint


def hf_folder(folder: Path, **changes: Any) -> Path:
    """A folder with everything that resolving looks at."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llava",
        "vision_config": {},
        "text_config": {},
        "llava_prompt_format": "vicuna_v1",
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + b"\0\0\0\0"
    )
    return folder


@pytest.fixture
def pair(text_gguf: Writer, mmproj_gguf: Writer, tmp_path: Path) -> Path:
    """A folder with a text model and its mmproj."""
    text_gguf(tmp_path / "pair" / "model.gguf", llava__prompt_format="vicuna_v1")
    mmproj_gguf(tmp_path / "pair" / "encoder.gguf")
    return tmp_path / "pair"


def test_a_gguf_finds_its_mmproj_by_content(pair: Path) -> None:
    files = models.resolve(str(pair / "model.gguf"))
    assert (files.format, files.path.name) == ("gguf", "model.gguf")
    assert files.mmproj is not None and files.mmproj.name == "encoder.gguf"
    assert files.prompt_format == "vicuna_v1"
    assert files.config["llama.embedding_length"] == 8
    assert not files.bundled


def test_a_folder_of_one_pair_is_that_pair(pair: Path) -> None:
    assert models.resolve(str(pair)).path.name == "model.gguf"


def test_a_mmproj_can_be_named(pair: Path, mmproj_gguf: Writer, tmp_path: Path) -> None:
    other = mmproj_gguf(tmp_path / "elsewhere" / "other.gguf")
    files = models.resolve(str(pair / "model.gguf"), mmproj=str(other))
    assert files.mmproj == other


def test_several_mmproj_files_are_not_guessed_between(pair: Path, mmproj_gguf: Writer) -> None:
    mmproj_gguf(pair / "second.gguf")
    hint = refused(str(pair / "model.gguf"), "several mmproj files.*encoder.gguf, second.gguf")
    assert "--mmproj" in hint


def test_of_several_mmproj_files_the_fitting_one_is_taken(pair: Path, mmproj_gguf: Writer) -> None:
    mmproj_gguf(pair / "another-models.gguf", width=16)
    files = models.resolve(str(pair / "model.gguf"))
    assert files.mmproj is not None and files.mmproj.name == "encoder.gguf"


def test_a_gguf_without_mmproj_is_refused(text_gguf: Writer, tmp_path: Path) -> None:
    path = text_gguf(tmp_path / "lonely" / "model.gguf")
    assert "--mmproj" in refused(str(path), "no mmproj beside it")


def test_a_mmproj_of_another_model_is_refused(
    pair: Path, mmproj_gguf: Writer, text_gguf: Writer, tmp_path: Path
) -> None:
    wide = mmproj_gguf(tmp_path / "wide.gguf", width=16)
    assert refused(str(pair / "model.gguf"), "another width", mmproj=str(wide))
    lonely = text_gguf(tmp_path / "apart" / "model.gguf")
    mmproj_gguf(tmp_path / "apart" / "wide.gguf", width=16)
    assert refused(str(lonely), "no mmproj in .* belongs to")


def test_the_two_files_the_wrong_way_round_are_named(pair: Path) -> None:
    hint = refused(str(pair / "encoder.gguf"), "image encoder .* not a language model")
    assert "--mmproj" in hint
    text = str(pair / "model.gguf")
    assert refused(text, "is no mmproj", mmproj=text)


def test_a_missing_mmproj_file_is_named(pair: Path) -> None:
    assert refused(str(pair / "model.gguf"), "no such mmproj", ModelNotFound, mmproj="none.gguf")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"without": ("mm.2.weight",)}, "lacks mm.2.weight"),
        ({"without": ("v.patch_embd.weight",)}, "lacks v.patch_embd.weight"),
        ({"without": ("v.blk.0.attn_v.weight",)}, "lacks v.blk.0.attn_v.weight"),
        ({"without": ("v.blk.0.ffn_down.bias",)}, "lacks v.blk.0.ffn_down.bias"),
        ({"feature_layer": None}, "feature_layer"),
        ({"feature_layer": (2,)}, "bad clip.vision.feature_layer"),
        ({"projector": "ldp"}, "projector of kind 'ldp'"),
        ({"numbers": {"attention.head_count": 0}}, "no usable clip.vision.attention.head_count"),
        ({"numbers": {"attention.head_count": 3}}, "do not fit together"),
        ({"numbers": {"image_size": 8}}, "v.position_embd.weight has the shape"),
        ({"numbers": {"patch_size": 1}}, "v.patch_embd.weight has the shape"),
        ({"reshaped": {"mm.0.bias": (3,)}}, "projector does not fit together"),
        ({"reshaped": {"v.blk.0.ln1.bias": (3,)}}, "v.blk.0.ln1.bias has the shape"),
    ],
)
def test_mmproj_files_that_llama_cpp_would_crash_on_or_misread_are_refused(
    text_gguf: Writer, mmproj_gguf: Writer, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    text = text_gguf(tmp_path / "model.gguf")
    mmproj_gguf(tmp_path / "mmproj.gguf", **options)
    assert refused(str(text), said)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model", b"GGUF" + b"\xff" * 300])
def test_a_corrupt_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert refused(str(path), "empty|damaged|not a GGUF|version")


@pytest.mark.parametrize("name", ["model.gguf", "encoder.gguf"])
def test_damage_in_a_folder_is_named_not_passed_over(pair: Path, name: str) -> None:
    (pair / name).write_bytes((pair / name).read_bytes()[:200])
    assert refused(str(pair), f"{name} is damaged")


def test_a_damaged_stranger_beside_a_whole_pair_does_no_harm(pair: Path) -> None:
    (pair / "half.gguf").write_bytes(b"GGUF")
    assert models.resolve(str(pair)).path.name == "model.gguf"


def test_a_chat_template_names_the_format_where_our_key_is_missing(
    text_gguf: Writer, mmproj_gguf: Writer, tmp_path: Path
) -> None:
    text = text_gguf(tmp_path / "a.gguf", tokenizer__chat_template=VICUNA_TEMPLATE)
    mmproj_gguf(tmp_path / "b.gguf")
    assert models.resolve(str(text)).prompt_format == "vicuna_v1"


def test_a_llava_hf_folder_and_a_run_are_found(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf")
    files = models.resolve(str(folder))
    assert (files.format, files.path, files.prompt_format) == ("hf", folder, "vicuna_v1")
    run = hf_folder(tmp_path / "run" / "model").parent
    (run / "log.jsonl").write_text("")
    assert models.resolve(str(run)).path == run / "model"


def test_a_folders_chat_template_names_the_format(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf", llava_prompt_format=None)
    assert models.resolve(str(folder)).prompt_format is None
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": VICUNA_TEMPLATE}))
    assert models.resolve(str(folder)).prompt_format == "vicuna_v1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_config": None, "model_type": "llama"}, None),
        ({"auto_map": {"AutoModel": "code.Model"}}, "program code"),
        ({"peft_type": "LORA"}, "LoRA adapter"),
    ],
)
def test_folders_of_other_kinds_are_named(
    tmp_path: Path, changes: dict[str, Any], said: str | None
) -> None:
    folder = hf_folder(tmp_path / "hf", **changes)
    if said is None:
        config = json.loads((folder / "config.json").read_text())
        del config["vision_config"]
        (folder / "config.json").write_text(json.dumps(config))
        said = "cannot look at pictures"
    assert refused(str(folder), said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "no weights"),
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("tokenizer.json", "no tokenizer.json"),
    ],
)
def test_incomplete_folders_are_named(tmp_path: Path, name: str, said: str) -> None:
    folder = hf_folder(tmp_path / "hf")
    (folder / name).unlink()
    assert refused(str(folder), said)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refused(str(folder), "pickle")


def test_weights_that_were_cut_off_are_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refused(str(folder), "damaged")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(str(folder), "model-00002-of-00002.safetensors is missing")


def test_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf")
    for content in ("{", "[]", ""):
        (folder / "config.json").write_text(content)
        assert refused(str(folder), "JSON")


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    assert refused(str(tmp_path), "holds no model")


@pytest.mark.parametrize("reference", ["no-such-model", "a b", "", "llava-9000"])
def test_an_unknown_name_says_what_was_tried(reference: str) -> None:
    hint = refused(reference, "unknown model.*no such file, folder, alias or Hub id", ModelNotFound)
    assert "did you mean" in hint or "llava alias" in hint


@pytest.mark.parametrize(
    "reference", ["./none", "/no/such/model.gguf", "none.gguf", "~/none", "a/b/c", "x" * 5000 + "/"]
)
def test_a_missing_path_is_called_a_path(reference: str) -> None:
    assert refused(reference, "no such model file or folder", ModelNotFound)


def test_a_hub_id_offline_says_so_at_once() -> None:
    hint = refused("org/name", "not on this disk.*offline", ModelNotFound, offline=True)
    assert "go online" in hint
    assert refused("org/name@main:Q4_K_M", "not on this disk", ModelNotFound, offline=True)


def test_an_engine_that_cannot_read_the_files_is_named(pair: Path, tmp_path: Path) -> None:
    hint = refused(str(pair / "model.gguf"), "PyTorch engine cannot read", engine="torch")
    assert "--engine gguf" in hint
    folder = hf_folder(tmp_path / "hf")
    assert "llava convert" in refused(str(folder), "GGUF engine cannot read", engine="gguf")


def test_a_folder_with_both_kinds_goes_by_the_engine(pair: Path, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "both")
    for path in pair.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert models.resolve(str(folder)).format == "hf"
    assert models.resolve(str(folder), engine="gguf").format == "gguf"
    assert models.resolve(str(folder), engine="torch").format == "hf"


def test_the_bundled_model_is_what_none_means(
    text_gguf: Writer, mmproj_gguf: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving = importlib.import_module("llava_cli.models.resolve")  # not the function
    monkeypatch.setattr(resolving, "_BUNDLED_FOLDER", tmp_path / "demo")
    with pytest.raises(ModelNotFound, match="no bundled model"):
        models.resolve(None)
    text_gguf(tmp_path / "demo" / "llava-demo-Q8_0.gguf")
    mmproj_gguf(tmp_path / "demo" / "mmproj-llava-demo-F16.gguf")
    hf_folder(tmp_path / "demo" / "model")
    for reference in (None, "llava-demo"):
        files = models.resolve(reference)
        assert (files.reference, files.format, files.bundled) == ("llava-demo", "gguf", True)
        files = models.resolve(reference, engine="torch")
        assert (files.format, files.bundled) == ("hf", True)
