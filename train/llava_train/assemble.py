"""Puts a LLaVA together: from a language model and a vision tower, or from a finished run.

References are folders (a run of ours counts as its `model/`) or Hub ids. What a folder holds is
read from its config.json, never from its name. Only safetensors are loaded, and no code of a
repository is run.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from llava_cli import models
from llava_cli.engines.quiet import silent
from llava_cli.errors import LlavaError, ModelInvalid, ModelNotFound, UsageError
from llava_cli.pixels import Aspect, PixelConfig
from llava_cli.tiles import square_config
from llava_train import adapters, connectors, towers
from llava_train.labels import IMAGE_TOKEN
from llava_train.recipe import MODULES, Recipe
from llava_train.tiling import pinpoints

_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Parts:
    """A model that can be trained, and what belongs to it."""

    model: Any
    """LlavaForConditionalGeneration, or LlavaNext's; `requires_grad` follows the recipe."""
    tokenizer: Any
    pixels: PixelConfig
    image_tokens: int
    """Positions that a square takes: the picture, or one of its tiles."""
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

    def members(self, name: str) -> list[nn.Parameter]:
        """All parameters of a module; the head is the language model's, the vector that ends a row
        of tiles the connector's."""
        found = list(self.module(name).parameters())
        if name == "language_model":
            found += self.model.lm_head.parameters()
        if name == "connector" and hasattr(self.model.model, "image_newline"):
            found.append(self.model.model.image_newline)
        return list({id(p): p for p in found}.values())

    def parameters(self, name: str) -> list[tuple[str, nn.Parameter]]:
        """A module's trained parameters with their names."""
        wanted = {id(p) for p in self.members(name) if p.requires_grad}
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
    adapters.check(recipe)
    torch.manual_seed(recipe.seed)  # the new connector's and new rows' initial values
    folder = locate(from_run if model is None else model)
    whole = _config(folder).get("model_type") in towers.LLAVAS
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
    """A finished LLaVA, as it is; one of single squares may begin to read tiles."""
    model = _load_llava(folder)
    config = model.config
    kind = connectors.kind_of(model.model.multi_modal_projector, config.projector_hidden_act)
    has_class = towers.has_class(config.vision_config)
    made_with = {
        "connector": kind,
        "feature_layer": config.vision_feature_layer,
        "select": config.vision_feature_select_strategy if has_class else "default",
    }
    if config.model_type == "llava_next":
        size = config.vision_config.image_size
        made_with["aspect"] = "anyres"
        if pinpoints(recipe, size) != [list(pair) for pair in config.image_grid_pinpoints]:
            grids = (f"{h // size}x{w // size}" for h, w in config.image_grid_pinpoints)
            made_with["tiles"] = ",".join(grids)
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
    if recipe.aspect == "anyres" and config.model_type == "llava":
        model = _joined(recipe, tokenizer, model, model.model.vision_tower,
                        model.model.multi_modal_projector)  # fmt: skip
    return _parts(recipe, model, tokenizer, folder, [folder])


def _composed(recipe: Recipe, folder: Path, vision_tower: str | Path | None, whole: bool) -> Parts:
    """A language model and a vision tower with a new connector between them."""
    from transformers import AutoModelForCausalLM

    if vision_tower is None and not whole:
        raise UsageError("a language model alone sees nothing", "give --vision-tower REF")
    tokenizer = _tokenizer(folder)
    loaded = _load_llava(folder) if whole else _load(AutoModelForCausalLM, folder)
    tower_folder = folder if vision_tower is None else locate(vision_tower)
    tower = (
        loaded.model.vision_tower
        if vision_tower is None
        else towers.tower_of(tower_folder, _config(tower_folder).get("model_type"), _load)
    )
    _add_image_token(tokenizer, loaded)
    model = _joined(recipe, tokenizer, loaded, tower, None)
    return _parts(recipe, model, tokenizer, tower_folder, [folder, tower_folder])


def _joined(recipe: Recipe, tokenizer: Any, loaded: Any, tower: Any, connector: Any) -> Any:
    """One model of a loaded one's language model, a tower, and a connector (None: a new one)."""
    import transformers

    whole = loaded.config.model_type in towers.LLAVAS
    language = loaded.model.language_model if whole else loaded.get_decoder()
    has_class = towers.has_class(tower.config)
    if recipe.select == "full" and not has_class:
        raise UsageError("this vision tower has no CLS position", "use --set select=default")
    tiles = recipe.aspect == "anyres"
    if tiles and recipe.adapter != "none":
        raise UsageError(
            "an adapter cannot hold the new vector that ends a row of tiles",
            "train stage2 with aspect=anyres first, or use --set aspect=pad",
        )
    name = "LlavaNext" if tiles else "Llava"
    grids = {"image_grid_pinpoints": pinpoints(recipe, tower.config.image_size)} if tiles else {}
    config = getattr(transformers, f"{name}Config")(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=towers.positions(tower.config, recipe.select),
        projector_hidden_act=connectors.activation(recipe.connector),
        vision_feature_layer=recipe.feature_layer,
        vision_feature_select_strategy=recipe.select if has_class else "full",
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
        **grids,
    )
    with torch.device("meta"):  # an empty frame: every part is set below
        model = getattr(transformers, towers.LLAVAS[config.model_type])(config)
    model.model.vision_tower = tower
    model.model.multi_modal_projector = connector or connectors.build(recipe.connector, config)
    model.model.language_model = language
    if tiles:
        width = language.config.hidden_size
        model.model.image_newline = nn.Parameter(torch.randn(width) / math.sqrt(width))
    model.lm_head = loaded.get_output_embeddings()
    if loaded.generation_config is not None:
        model.generation_config = loaded.generation_config
    return model


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
    pixels = towers.usual_pixels(vision)
    if settings:
        cuts = "image_grid_pinpoints" in (settings.get("image_processor") or settings)
        pixels = (square_config if cuts else PixelConfig.from_preprocessor)(settings)
    aspect = cast(Aspect, "stretch" if recipe.aspect == "anyres" else recipe.aspect)
    pixels = replace(pixels, size=vision.image_size, aspect=aspect)
    positions = towers.positions(vision, recipe.select)
    source = hashlib.sha256("".join(_digest(folder) for folder in sources).encode()).hexdigest()
    return Parts(model, tokenizer, pixels, positions, source)


def freeze(parts: Parts, recipe: Recipe) -> None:
    """`requires_grad` and precision of every module by the recipe's map."""
    dtype = getattr(torch, recipe.frozen_dtype)
    parts.model.requires_grad_(False)
    whole: list[nn.Parameter] = []
    for name in MODULES:
        members = parts.members(name)
        trained = recipe.trains(name) and (name != "language_model" or recipe.adapter == "none")
        for parameter in members:  # buffers (rotary angles) stay in float32
            parameter.data = parameter.data.to(torch.float32 if trained else dtype)
        if trained and name != "connector":
            whole += members
    if recipe.trains("connector"):
        whole += connectors.trainable(parts.module("connector"), recipe.connector)
        if recipe.adapter == "none" and hasattr(parts.model.model, "image_newline"):
            whole.append(parts.model.model.image_newline)  # no adapter could hold it
    if recipe.adapter != "none":
        adapters.attach(parts.model, recipe)  # freezes everything else
    for parameter in whole:
        parameter.requires_grad_(True)


def _load_llava(folder: Path) -> Any:
    """A whole LLaVA, of whichever of the two classes its config names."""
    import transformers

    return _load(getattr(transformers, towers.LLAVAS[_config(folder)["model_type"]]), folder)


def _load(kind: Any, folder: Path) -> Any:
    """A model in float32 from safetensors; anything wrong with it is one clear error."""
    try:
        with silent():
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
