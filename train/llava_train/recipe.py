"""A recipe: every number that decides a training run, as one frozen value read from TOML.

`load` takes the name of a shipped recipe or a file, `override` applies `--set key=value`. What a
recipe does not say is where things lie (model, data, output): those are arguments of `loop.train`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from llava_cli.errors import UsageError
from llava_cli.prompts import FORMATS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODULES = ("vision_tower", "connector", "language_model")
_CHOICES: dict[str, tuple[str, ...]] = {
    "stage": ("stage1", "stage2", "lora", "scienceqa"),
    "prompt_format": tuple(FORMATS),
    "connector": ("linear", "mlp2x_gelu"),
    "select": ("default", "full"),
    "aspect": ("pad", "crop", "stretch", "anyres"),
    "image_place": ("front", "data", "random"),
    "answer_order": ("data", "answer-first", "reasoning-first"),
    "adapter": ("none", "lora", "dora", "qlora"),
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("float32", "bfloat16"),
    "frozen_dtype": ("float32", "bfloat16", "float16"),
    "export_dtype": ("float32", "bfloat16", "float16"),
    "grouping": ("none", "length", "modality"),
}
FREE = frozenset({"name", "workers", "prefetch", "pixel_cache_mb", "save_every", "save_every_s",
                   "keep", "export_dtype", "compile", "broken_limit", "val_every", "val_answers",
                   "async_save", "shard"})  # fmt: skip
"""Fields that do not change what is learnt, so that a resumed run may change them."""
LATER = frozenset({"image_place", "answer_order", "adapter", "lora_rank", "lora_alpha",
                   "lora_dropout", "pack", "val_samples", "exact_sums", "tiles"})  # fmt: skip
"""Fields that came after the first release; at their default they leave a fingerprint as it was,
so that older runs go on."""


@dataclass(frozen=True)
class Recipe:
    """One training run. Lists of what is trained and how fast, in the order of the loop."""

    name: str = ""
    stage: str = "stage2"

    # the model
    prompt_format: str = "vicuna_v1"
    connector: str = "mlp2x_gelu"
    feature_layer: int = -2
    """Which hidden state of the vision tower is read; -2 leaves the last layer out."""
    select: str = "default"
    """`default` drops the CLS position of a tower that has one, `full` keeps it."""
    aspect: str = "pad"
    """How a picture becomes the tower's square: pad · crop · stretch; or anyres: a whole one and as
    many tiles as suit it (LLaVA-1.6)."""
    tiles: str = "1x2,2x1,2x2,3x1,1x3"
    """With anyres: the grids, rows x columns of squares; of several as good the first is taken."""
    image_place: str = "front"
    """Where a turn's picture stands: in `front` of the question (LLaVA-1.5), where the `data` has
    it, or in front or behind at `random`, by seed and sample (LLaVA v1)."""
    train_vision_tower: bool = False
    train_connector: bool = True
    train_language_model: bool = True
    adapter: str = "none"
    """lora · dora · qlora (over 4-bit weights, on a CUDA GPU): low-rank updates of the language
    model's linear layers instead of its weights; its embeddings, head and norms stay as they are.
    """
    lora_rank: int = 64
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05

    # the data
    batch: int = 128
    """Samples of one optimizer step, whatever the micro-batch is."""
    micro_batch: int = 16
    max_length: int = 2048
    """Positions of a sample, image positions included; what is longer is cut at the end."""
    epochs: float = 1.0
    steps: int = 0
    """Length of the run in steps; 0: by epochs."""
    grouping: str = "length"
    """none · length: batches of like length · modality: also either all with or all without
    pictures."""
    group_batches: int = 32
    """Batches that are shuffled together before they are sorted by length."""
    pack: int = 0
    """Positions of a row that holds several samples, which do not see each other; 0: a row for
    each sample. Replaces micro_batch and changes no loss."""
    answer_order: str = "data"
    """Of ScienceQA: the answer before its reasoning, behind it, or as the data has it."""
    val_samples: int = 0
    """Samples held out of training, drawn by the seed, to measure the loss on."""
    seed: int = 0

    # the optimizer (AdamW)
    lr: float = 2e-5
    lr_vision_tower: float = 0.0
    """0: `lr`; the same for the two below."""
    lr_connector: float = 0.0
    lr_language_model: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.03
    """Share of the steps; the learning rate rises linearly."""
    min_lr: float = 0.0
    """Where the schedule ends, as a share of the learning rate."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 1.0
    """Largest norm of the gradient; 0: not clipped."""

    # arithmetic
    precision: str = "bfloat16"
    """bfloat16: autocast over float32 weights."""
    frozen_dtype: str = "float32"
    """Of weights that are not trained."""
    exact_sums: bool = True
    """Add the gradients of micro-batches in float64: the number of processes then changes nothing.
    Costs 8 bytes a trained parameter; without it, other numbers of processes end 1e-6 apart."""
    shard: bool = False
    """Split parameters, gradients and moments over the processes (FSDP2), for language models that
    do not fit on one GPU. Gradients are then added across processes in float32."""
    gradient_checkpointing: bool = False
    compile: bool = False
    """torch.compile of the language model."""

    # work around the loop
    workers: int = 2
    """Threads that decode pictures."""
    prefetch: int = 4
    """Batches decoded ahead."""
    pixel_cache_mb: int = 0
    """Memory for prepared pictures, so that later epochs decode less."""
    feature_cache: bool = False
    """Run the frozen tower once over each picture and keep its output on disk: for runs that see a
    picture more than once. The run learns the same."""
    save_every: int = 500
    """Steps between checkpoints; 0: never by steps."""
    save_every_s: float = 0.0
    """Seconds between checkpoints; 0: never by time."""
    keep: int = 2
    """Checkpoints kept."""
    async_save: bool = True
    """Write checkpoints beside the next steps; costs memory for one copy of what is trained."""
    val_every: int = 0
    """Steps between measurements on the samples held out; 0: at the end only."""
    val_answers: int = 4
    """Samples held out that the model also answers, for people to read."""
    broken_limit: int = 0
    """Samples whose picture is missing or cannot be decoded that are left out, counted and named;
    one more stops the run."""
    export_dtype: str = "float32"

    def trains(self, module: str) -> bool:
        """Whether `vision_tower`, `connector` or `language_model` is trained."""
        return bool(getattr(self, f"train_{module}"))

    def lr_of(self, module: str) -> float:
        """The learning rate of a module."""
        return float(getattr(self, f"lr_{module}") or self.lr)

    def fingerprint(self) -> str:
        """Digest of every field that decides what is learnt."""
        deciding = self.deciding()
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def deciding(self) -> dict[str, Any]:
        """The fields that decide what is learnt."""
        new = {key for key in LATER if getattr(self, key) == getattr(Recipe, key)}
        return {key: v for key, v in asdict(self).items() if key not in FREE and key not in new}

    def to_toml(self) -> str:
        """The recipe as a TOML file."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in asdict(self).items()]
        return "\n".join(lines) + "\n"


_TYPES: dict[str, Any] = get_type_hints(Recipe)


def names() -> list[str]:
    """The shipped recipes."""
    folder = resources.files("llava_train") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load(reference: str | Path) -> Recipe:
    """A shipped recipe by its name, or one from a file."""
    reference = str(reference)
    if reference in names():
        text = (resources.files("llava_train") / "recipes" / f"{reference}.toml").read_text("utf-8")
        return parse(text, f"recipe {reference}", name=reference)
    path = Path(reference)
    if not path.is_file():
        raise UsageError(f"no recipe {reference!r}", _close(reference, names(), "recipes"))
    try:
        return parse(path.read_text("utf-8"), str(path), name=path.stem)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "give a TOML file") from error


def parse(text: str, where: str, name: str = "") -> Recipe:
    """A recipe from the text of a TOML file."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}", "correct the file") from error
    return from_values(Recipe(name=name), values, where)


def from_values(recipe: Recipe, values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with fields replaced by values of a file or of Python."""
    return _checked(replace(recipe, **{k: _typed(k, v, where) for k, v in values.items()}))


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with `key=value` texts applied, each read as its field's type."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise UsageError(f"--set {setting}: no '='", "write --set KEY=VALUE")
        key, text = key.strip(), text.strip()
        values[key] = _parsed(key, text)
    return from_values(recipe, values, "--set")


def _parsed(key: str, text: str) -> Any:
    kind = _field_type(key, "--set")
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError) as error:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"--set {key}: {text!r} is not {wanted}", f"{key} is {wanted}") from error


def _field_type(key: str, where: str) -> type:
    if key not in _TYPES:
        raise UsageError(f"{where}: no field {key!r}", _close(key, _TYPES, "fields"))
    kind = _TYPES[key]
    return get_args(kind)[0] if get_args(kind) else kind


def _typed(key: str, value: Any, where: str) -> Any:
    kind = _field_type(key, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UsageError(
            f"{where}: {key} = {value!r} is not {kind.__name__}", f"give {key} as {kind.__name__}"
        )
    return value


def _checked(recipe: Recipe) -> Recipe:
    """The recipe, if its values make sense together."""
    for key, choices in _CHOICES.items():
        value = getattr(recipe, key)
        if value not in choices:
            raise UsageError(f"{key} = {value!r} is not known", f"one of: {', '.join(choices)}")
    for key in ("batch", "micro_batch", "max_length", "workers", "prefetch", "keep", "lora_rank"):
        if getattr(recipe, key) < 1:
            raise UsageError(f"{key} must be at least 1", f"give {key} = 1 or more")
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(
                f"{field.name} = {value} is not a finite number", f"correct {field.name}"
            )
        if field.name != "feature_layer" and isinstance(value, (int, float)) and value < 0:
            raise UsageError(f"{field.name} = {value} is below zero", "give 0 or more")
    if not any(recipe.trains(module) for module in MODULES):
        raise UsageError("the recipe trains nothing", "set one of train_... = true")
    if recipe.shard and (recipe.adapter != "none" or recipe.val_samples):
        what = "val_samples" if recipe.val_samples else "an adapter"
        raise UsageError(f"shard does not go with {what}", "use --set shard=false")
    _check_adapter(recipe)
    return recipe


def _check_adapter(recipe: Recipe) -> None:
    if recipe.stage == "lora" and recipe.adapter == "none":
        raise UsageError("stage lora without an adapter", "use --set adapter=lora, or stage2")
    if recipe.adapter == "none":
        return
    if not recipe.train_language_model:
        raise UsageError(
            "an adapter for a language model that is not trained", "set train_language_model=true"
        )
    if recipe.lora_dropout >= 1:
        raise UsageError(f"lora_dropout = {recipe.lora_dropout} drops all", "give less than 1")


def _close(name: str, known: Iterable[str], what: str) -> str:
    near = difflib.get_close_matches(name, list(known), 3)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"{what}: {', '.join(known)}"
