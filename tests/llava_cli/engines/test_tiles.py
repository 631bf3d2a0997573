"""LLaVA-1.6 in the GGUF engine computes what transformers computes; older mmproj files are right.

The reference is transformers' own LlavaNext with the weights of a tiny LLaVA-1.5, whose converted
mmproj is given a grid and a newline here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from llava_cli import models
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.gguf.engine import GgufEngine
from llava_cli.errors import ModelInvalid
from llava_cli.images import Image
from llava_cli.models import mmproj as mmproj_checks
from llava_cli.models.gguf_header import read_header
from llava_cli.pixels import PixelConfig
from llava_cli.tiles import Grid
from tests import tiny

PINPOINTS = [(56, 112), (112, 56), (112, 112), (168, 56), (56, 168)]
SIZES = [(80, 60), (60, 80), (56, 56), (300, 40), (33, 210), (200, 199), (7, 9), (113, 57)]
NEWLINE = np.random.default_rng(5).normal(0, 1, 64).astype(np.float32)


def rewritten(
    source: Path, target: Path, changes: dict[str, Any], tensors: dict[str, Any] | None = None
) -> None:
    """A copy of a GGUF with keys replaced (None: left out) and tensors added."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(source)
    writer = GGUFWriter(target, "clip")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changes:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for name, value in changes.items():
        if isinstance(value, list):
            kinds = GGUFValueType.ARRAY, GGUFValueType.INT32
            writer.add_key_value(name, value, kinds[0], sub_type=kinds[1])
        elif value is not None:
            writer.add_string(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, rows in (tensors or {}).items():
        writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def beside(source: Path, folder: Path, changes: dict[str, Any], tensors: Any = None) -> Path:
    """A copy of a GGUF pair with another mmproj."""
    folder.mkdir()
    (mmproj,) = source.glob("mmproj-*.gguf")
    for path in source.glob("*.gguf"):
        if path != mmproj:
            shutil.copy(path, folder)
    rewritten(mmproj, folder / mmproj.name, changes, tensors)
    return folder


def load(folder: Path) -> GgufEngine:
    return GgufEngine(models.resolve(str(folder)), threads=1)


@pytest.fixture(scope="module")
def tiled_folder(bpe_gguf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {
        "llava.image_aspect": "anyres",
        "llava.image_grid_pinpoints": [side for pair in PINPOINTS for side in pair],
        "clip.vision.image_grid_pinpoints": [s for h, w in PINPOINTS for s in (w, h)],
    }
    folder = tmp_path_factory.mktemp("tiled") / "tiled"
    return beside(bpe_gguf_folder, folder, keys, {"v.image_newline": NEWLINE})


@pytest.fixture(scope="module")
def tiled(tiled_folder: Path) -> Iterator[GgufEngine]:
    engine = load(tiled_folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(bpe_folder: Path) -> Any:
    """transformers' LlavaNext with the same weights."""
    torch = pytest.importorskip("torch")
    from transformers import LlavaConfig, LlavaNextConfig
    from transformers import LlavaForConditionalGeneration as Llava
    from transformers import LlavaNextForConditionalGeneration as LlavaNext

    config = LlavaConfig.from_pretrained(bpe_folder)
    model = LlavaNext(
        LlavaNextConfig(
            vision_config=config.vision_config,
            text_config=config.text_config,
            image_token_index=config.image_token_index,
            vision_feature_layer=-2,
            image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
        )
    )
    weights = Llava.from_pretrained(bpe_folder).state_dict()
    weights["model.image_newline"] = torch.from_numpy(NEWLINE)
    model.load_state_dict(weights)
    return model.float().eval()


def processed(picture: Any) -> dict[str, Any]:
    from transformers import LlavaNextImageProcessor

    square = {"height": tiny.IMAGE_PX, "width": tiny.IMAGE_PX}
    processor = LlavaNextImageProcessor(
        size=square,
        crop_size=square,
        image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    )
    return dict(processor(picture, return_tensors="pt"))


def test_tiles_and_packed_features_and_logits_are_those_of_transformers(
    tiled: GgufEngine, reference: Any
) -> None:
    import torch

    embed = reference.get_input_embeddings()
    for seed, (width, height) in enumerate(SIZES):
        picture = tiny.picture(width, height, seed)
        inputs = processed(picture)
        with torch.inference_mode():
            found = reference.model.get_image_features(**inputs)
            found = getattr(found, "pooler_output", found)
        wanted = torch.cat(list(found)).numpy()
        image = Image.from_pil(picture)
        rows = tiled.image_features(image)
        assert rows.shape == wanted.shape, (width, height)
        assert np.abs(rows - wanted).max() < 3e-3
        conversation = Conversation().add("user", image, "what is odd?")
        parts = []
        for token in tiled.prompt_ids(conversation):
            if token == "image":
                parts.append(torch.from_numpy(wanted))
            else:
                parts.append(embed(torch.tensor([int(token)])).detach())
        with torch.inference_mode():
            logits = reference.model.language_model(inputs_embeds=torch.cat(parts)[None])
            logits = reference.lm_head(logits.last_hidden_state[0, -1]).numpy()
        assert np.abs(tiled.first_logits(conversation) - logits).max() < 5e-3


def test_squares_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    grid = Grid(tuple(PINPOINTS), 56, 4)
    config = PixelConfig(56, aspect="stretch")
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (config.mean, config.std))
    for seed, (width, height) in enumerate(SIZES):
        picture = tiny.picture(width, height, seed)
        theirs = np.asarray(processed(picture)["pixel_values"])[0]
        ours = np.stack(grid.squares(picture, config)).transpose(0, 3, 1, 2)
        assert ours.shape == theirs.shape
        assert np.abs((ours / 255 - mean) / std - theirs).max() < 1e-4


def test_positions_are_counted_before_anything_is_encoded(tiled: GgufEngine) -> None:
    for seed, (width, height) in enumerate(SIZES):
        image = Image.from_pil(tiny.picture(width, height, seed))
        assert tiled._pictures.look(image).count == len(tiled.image_features(image))
        conversation = Conversation().add("user", image, "what?")
        stats = list(tiled.generate(conversation, Sampling(max_tokens=2)))[-1].stats
        assert stats is not None and stats.images[0].tokens == stats.image_tokens


def test_the_sizes_of_the_paper() -> None:
    """LLaVA-1.6 with 336 px: up to 2928 positions."""
    pinpoints = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    grid = Grid(pinpoints, 336, 24)
    assert grid.count(672, 672) == 576 + 48 * 49 == 2928
    assert grid.count(1008, 336) == 576 + 24 * 73
    assert grid.count(336, 1008) == 576 + 72 * 25


def test_a_batch_of_tiled_pictures_answers_like_one_by_one(tiled: GgufEngine) -> None:
    asked = [
        Conversation().add("user", Image.from_pil(tiny.picture(w, h, s)), "what?")
        for s, (w, h) in enumerate(SIZES[:4])
    ]
    alone = [[t.id for t in tiled.generate(c, Sampling(max_tokens=5))] for c in asked]
    found: list[list[int | None]] = [[] for _ in asked]
    for index, token in tiled.generate_batch(asked, Sampling(max_tokens=5)):
        found[index].append(token.id)
    assert found == alone


def test_older_converters_files_are_run_with_all_their_layers(
    bpe_gguf_folder: Path,
    tiled_folder: Path,
    bpe_gguf: GgufEngine,
    tiled: GgufEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No `feature_layer`, one layer fewer than the tower has; (width, height), an older newline."""
    monkeypatch.setitem(mmproj_checks._TOWER_LAYERS, 64, 3)
    gone = {"clip.vision.feature_layer": None}
    plain = load(beside(bpe_gguf_folder, tmp_path / "stock", gone))
    stock = {
        **gone,
        "llava.image_aspect": None,
        "llava.image_grid_pinpoints": None,
        "clip.vision.image_grid_pinpoints": [s for h, w in PINPOINTS for s in (w, h)],
        "clip.vision.mm_patch_merge_type": "spatial_unpad",
    }
    folder = beside(bpe_gguf_folder, tmp_path / "next", stock, {"model.image_newline": NEWLINE})
    older = load(folder)
    for seed, (width, height) in enumerate(SIZES[:3]):
        image = Image.from_pil(tiny.picture(width, height, seed))
        assert np.abs(plain.image_features(image) - bpe_gguf.image_features(image)).max() < 1e-5
        assert np.abs(older.image_features(image) - tiled.image_features(image)).max() < 1e-5
    plain.close()
    older.close()


def test_a_file_that_says_nothing_of_its_layers_is_refused(
    bpe_gguf_folder: Path, tmp_path: Path
) -> None:
    folder = beside(bpe_gguf_folder, tmp_path / "unknown", {"clip.vision.feature_layer": None})
    with pytest.raises(ModelInvalid, match="does not say which layer"):
        load(folder)


def test_tiles_without_a_newline_are_refused(bpe_gguf_folder: Path, tmp_path: Path) -> None:
    keys = {"llava.image_grid_pinpoints": [56, 112]}
    with pytest.raises(ModelInvalid, match="no newline"):
        load(beside(bpe_gguf_folder, tmp_path / "bare", keys))


@pytest.mark.parametrize("values", [[], [56], [56, 57], [0, 56], [-56, 56]])
def test_grids_that_are_none_are_refused(values: list[int], bpe_gguf_folder: Path) -> None:
    (mmproj,) = bpe_gguf_folder.glob("mmproj-*.gguf")
    metadata = {**read_header(mmproj).metadata, "llava.image_grid_pinpoints": values}
    with pytest.raises(ModelInvalid, match="no sizes of grids"):
        Grid.from_metadata(metadata)
