"""Puts a LLaVA together: from a language model and a vision tower, or from a finished run.

References are folders (a run of ours counts as its `model/`) or Hub ids. What a folder holds is
read from its config.json, never from its name. Only safetensors are loaded, and no code of a
repository is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from llava_cli import models
from llava_cli.errors import LlavaError, ModelInvalid, ModelNotFound, UsageError
from llava_cli.pixels import Aspect, PixelConfig
from llava_train import adapters, connectors
from llava_train.labels import IMAGE_TOKEN
from llava_train.recipe import MODULES, Recipe

_TOWERS = ("clip", "clip_vision_model")
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Parts:
    """A model that can be trained, and what belongs to it."""

    model: Any
    """LlavaForConditionalGeneration; `requires_grad` follows the recipe."""
    tokenizer: Any
    pixels: PixelConfig
    image_tokens: int
    """Positions that a picture takes."""
    source: str
    """Digest of the files it came from."""

    @property
    def pad_id(self) -> int:
        """An id for padding; never read as a token."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else 0

    def module(self, name: str) -> nn.Module:
        """`vision_tower`, `connector` or `language_model` (without its head)."""
        attribute = "multi_modal_projector" if name == "connector" else name
        module: nn.Module = getattr(self.model.model, attribute)
        return module

    def parameters(self, name: str) -> list[tuple[str, nn.Parameter]]:
        """A module's trained parameters with their names; the head is the language model's."""
        modules = [self.module(name)]
        if name == "language_model":
            modules.append(self.model.lm_head)
        wanted = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
        return [(n, p) for n, p in self.model.named_parameters() if id(p) in wanted]


def assemble(
    recipe: Recipe,
    *,
    model: str | Path | None = None,
    vision_tower: str | Path | None = None,
    from_run: str | Path | None = None,
) -> Parts:
    """Load and freeze by the recipe's map."""
    if (model is None) == (from_run is None):
        raise UsageError("give either --model or --from", "see llava train --help")
    if from_run is not None and vision_tower is not None:
        raise UsageError("a run brings its own vision tower", "leave --vision-tower out")
    torch.manual_seed(recipe.seed)  # the new connector's and new rows' initial values
    folder = locate(from_run if model is None else model)
    whole = _config(folder).get("model_type") == "llava"
    if whole and vision_tower is None and (from_run is not None or recipe.stage != "stage1"):
        parts = _continued(recipe, folder)
    elif from_run is not None:
        raise ModelInvalid(f"{folder} is no LLaVA", "give --from a run or a llava-hf folder")
    else:
        parts = _composed(recipe, folder, vision_tower, whole)
    freeze(parts, recipe)
    return parts


def locate(reference: str | Path | None) -> Path:
    """The folder of a reference, the bundled model's name included; one on the Hub is fetched."""
    if reference == models.BUNDLED:
        return models.resolve(models.BUNDLED, engine="torch").path
    path = Path(str(reference)).expanduser()
    if path.is_dir():
        return path / "model" if (path / "model" / "config.json").is_file() else path
    repo, _, revision = str(reference).partition("@")
    if path.exists() or repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise ModelNotFound(f"no model folder {reference}", "give a folder or org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        fetched = snapshot_download(repo, revision=revision or None, allow_patterns=_PATTERNS)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(
            f"{reference} cannot be fetched: {error}", "check the name, or give a folder"
        ) from error
    return Path(fetched)


def _continued(recipe: Recipe, folder: Path) -> Parts:
    """A finished LLaVA, as it is."""
    from transformers import LlavaForConditionalGeneration

    model = _load(LlavaForConditionalGeneration, folder)
    config = model.config
    kind = connectors.kind_of(model.model.multi_modal_projector, config.projector_hidden_act)
    made_with = {
        "connector": kind,
        "feature_layer": config.vision_feature_layer,
        "select": config.vision_feature_select_strategy,
    }
    for key, value in made_with.items():
        if getattr(recipe, key) != value:
            raise UsageError(
                f"the recipe says {key} = {getattr(recipe, key)!r}, the model was made with "
                f"{value!r}",
                f"use --set {key}={value}, or another model",
            )
    tokenizer = _tokenizer(folder)
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != config.image_token_index:
        raise ModelInvalid(f"{folder}: tokenizer and config disagree about {IMAGE_TOKEN}")
    return _parts(recipe, model, tokenizer, folder, [folder])


def _composed(recipe: Recipe, folder: Path, vision_tower: str | Path | None, whole: bool) -> Parts:
    """A language model and a vision tower with a new connector between them."""
    from transformers import AutoModelForCausalLM, LlavaConfig, LlavaForConditionalGeneration

    if vision_tower is None and not whole:
        raise UsageError("a language model alone sees nothing", "give --vision-tower REF")
    tokenizer = _tokenizer(folder)
    loaded = _load(LlavaForConditionalGeneration if whole else AutoModelForCausalLM, folder)
    language = loaded.model.language_model if whole else loaded.get_decoder()
    tower_folder = folder if vision_tower is None else locate(vision_tower)
    tower = loaded.model.vision_tower if vision_tower is None else _tower(tower_folder)
    _add_image_token(tokenizer, loaded)
    if recipe.select == "full" and not hasattr(tower.embeddings, "class_embedding"):
        raise UsageError("this vision tower has no CLS position", "use --set select=default")
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=_positions(tower.config, recipe.select),
        projector_hidden_act=connectors.activation(recipe.connector),
        vision_feature_layer=recipe.feature_layer,
        vision_feature_select_strategy=cast(Literal["default", "full"], recipe.select),
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    with torch.device("meta"):  # an empty frame: every part is set below
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.multi_modal_projector = connectors.build(recipe.connector, config)
    model.model.language_model = language
    model.lm_head = loaded.get_output_embeddings()
    if loaded.generation_config is not None:
        model.generation_config = loaded.generation_config
    return _parts(recipe, model, tokenizer, tower_folder, [folder, tower_folder])


def _parts(
    recipe: Recipe, model: Any, tokenizer: Any, preprocessor: Path, sources: list[Path]
) -> Parts:
    model.config._attn_implementation = "sdpa"
    vision = model.config.vision_config
    depth = vision.num_hidden_layers
    if not -depth - 1 <= recipe.feature_layer <= depth:
        raise UsageError(
            f"feature_layer = {recipe.feature_layer}, but the tower has {depth} layers",
            "use --set feature_layer=-2, or a tower with more layers",
        )
    settings = next(
        (_json(preprocessor / name) for name in _PREPROCESSORS if (preprocessor / name).is_file()),
        {},
    )
    pixels = PixelConfig(size=vision.image_size)
    if settings:
        pixels = PixelConfig.from_preprocessor(settings)
    pixels = replace(pixels, size=vision.image_size, aspect=cast(Aspect, recipe.aspect))
    positions = _positions(vision, recipe.select)
    source = hashlib.sha256("".join(_digest(folder) for folder in sources).encode()).hexdigest()
    return Parts(model, tokenizer, pixels, positions, source)


def freeze(parts: Parts, recipe: Recipe) -> None:
    """`requires_grad` and precision of every module by the recipe's map."""
    dtype = getattr(torch, recipe.frozen_dtype)
    parts.model.requires_grad_(False)
    whole: list[nn.Module] = []
    for name in MODULES:
        modules = [parts.module(name)]
        if name == "language_model":
            modules.append(parts.model.lm_head)
        trained = recipe.trains(name) and (name != "language_model" or recipe.adapter == "none")
        for part in modules:
            for parameter in part.parameters():  # buffers (rotary angles) stay in float32
                parameter.data = parameter.data.to(torch.float32 if trained else dtype)
        if trained and name != "connector":
            whole += modules
    if recipe.adapter != "none":
        adapters.attach(parts.model, recipe)  # freezes everything else
    for part in whole:
        part.requires_grad_(True)
    if recipe.trains("connector"):
        for parameter in connectors.trainable(parts.module("connector"), recipe.connector):
            parameter.requires_grad_(True)


def _load(kind: Any, folder: Path) -> Any:
    """A model in float32 from safetensors; anything wrong with it is one clear error."""
    try:
        with _quiet_transformers():
            model, report = kind.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
                attn_implementation="sdpa", local_files_only=True, output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        text = str(error).strip().split("\n")[0]
        raise ModelInvalid(
            f"{folder} cannot be loaded: {text}", "it needs config.json and safetensors"
        ) from error
    missing = sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])])
    if missing:  # transformers would go on with random values there
        raise ModelInvalid(
            f"{folder} lacks {len(missing)} tensors, {missing[0]} first", "fetch the model again"
        )
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its progress bars and remarks: what matters here is raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _tower(folder: Path) -> Any:
    """The vision half of a CLIP, or the tower of a LLaVA."""
    from transformers import CLIPVisionModel, LlavaForConditionalGeneration

    kind = _config(folder).get("model_type")
    if kind == "llava":
        return _load(LlavaForConditionalGeneration, folder).model.vision_tower
    if kind not in _TOWERS:
        raise ModelInvalid(
            f"{folder} is no CLIP vision tower (its model_type is {kind!r})",
            "give --vision-tower a CLIPModel, CLIPVisionModel or LLaVA",
        )
    return _load(CLIPVisionModel, folder)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, LlavaError) as error:
        raise ModelInvalid(f"{folder}: no tokenizer: {error}", "it needs tokenizer.json") from error
    tokenizer.padding_side = "right"
    return tokenizer


def _add_image_token(tokenizer: Any, language_model: Any) -> None:
    """`<image>` into the vocabulary; new rows are the mean of the old, in multiples of 64."""
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    known = language_model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= known:
        return
    language_model.resize_token_embeddings(
        len(tokenizer), pad_to_multiple_of=64, mean_resizing=False
    )
    layers = {language_model.get_input_embeddings(), language_model.get_output_embeddings()}
    with torch.no_grad():
        for layer in layers:
            layer.weight[known:] = layer.weight[:known].mean(0)


def _positions(vision: Any, select: str) -> int:
    """Positions that one picture takes: 336 px in patches of 14 are 24 x 24 = 576."""
    return int((vision.image_size // vision.patch_size) ** 2) + (select == "full")


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ModelInvalid(f"{folder} has no config.json", "give a model folder")
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelInvalid(f"{path} cannot be read: {error}", "fetch the model again") from error


def _digest(folder: Path) -> str:
    """What identifies a model's files quickly: config, sizes, and both ends of each weight file."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1 << 20)
            file.seek(max(0, size - (1 << 20)))
            digest.update(f"{path.name}:{size}".encode() + head + file.read())
    return digest.hexdigest()
