"""The PyTorch engine: transformers' LLaVA classes behind the `Engine` protocol.

Prompt ids and pixels are made the same way as in the GGUF engine; the model only computes. Nothing
is downloaded and no code that comes with a model is run. Legend: S positions, D width, N picture
tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import ImageInfo, Sampling, Stats, Token
from llava_cli.engines.choices import Choice
from llava_cli.engines.formats import choose_format
from llava_cli.engines.hf_vocabulary import HfVocabulary
from llava_cli.engines.tokenise import Piece, flat, tokenise
from llava_cli.errors import LlavaError, ModelInvalid, OutOfMemory, UsageError
from llava_cli.images import Image
from llava_cli.models.files import ModelFiles
from llava_cli.models.folders import PREPROCESSORS, read_json
from llava_cli.pixels import PixelConfig, normalise, prepare
from llava_cli.prompts import render, runs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_KEPT_PICTURES = 32
Cell = int | tuple[str, int]


@dataclass(frozen=True)
class Features:
    """A picture as the language model reads it."""

    rows: torch.Tensor
    """(N, D)"""
    width: int
    height: int


class TorchEngine:
    """A llava-hf model, loaded."""

    name = "torch"

    def __init__(
        self,
        files: ModelFiles,
        *,
        device: str = "auto",
        threads: int | None = None,
        prompt_format: str | None = None,
        context: int | None = None,
        dtype: str | None = None,
    ) -> None:
        started = time.perf_counter()
        self.files = files
        self._format = choose_format(files, prompt_format)
        self.prompt_format = self._format.name
        self.device = _device(device)
        if threads:
            torch.set_num_threads(threads)
        self._pixels = _pixel_config(files)
        with _out_of_memory(files.reference):
            self._model: Any = _load_model(files, _dtype(dtype, self.device)).to(self.device)
        self._vocabulary = HfVocabulary.from_folder(files.path, _end_ids(self._model))
        limit = int(getattr(self._model.config.get_text_config(), "max_position_embeddings", 4096))
        self._limit = min(limit, context or limit)
        self._kept: OrderedDict[tuple[str, str], Features] = OrderedDict()
        self._forget()
        self._load_s = time.perf_counter() - started

    def generate(self, conversation: Conversation, sampling: Sampling) -> Iterator[Token]:
        """Stream the answer to the last user turn; a last assistant turn is continued."""
        if sampling.schema is not None:
            raise UsageError("the PyTorch engine follows no schema", "use --engine gguf")
        if sampling.choices:
            yield from self._chosen(conversation, sampling)
            return
        prompt = self._read(conversation, sampling)
        yield from answer.answer(
            prompt,
            self._advance,
            self._vocabulary,
            self._format,
            sampling,
            continued=answer.is_continued(conversation),
        )

    def _chosen(self, conversation: Conversation, sampling: Sampling) -> Iterator[Token]:
        """One of the answers that are allowed."""

        def cells_of(asked: Conversation) -> Sequence[Cell]:
            pictures = [self._features(image)[0] for image in asked.images]
            return _cells(self._pieces(asked), asked.images, pictures)

        def behind(cells: Sequence[Cell]) -> npt.NDArray[np.float32]:
            known = self._keep(cells[:-1])
            ids = torch.tensor([[c for c in cells[known:] if isinstance(c, int)]])
            with torch.inference_mode():
                rows = self._model.get_input_embeddings()(ids.to(self.device))
            return self._forward(rows, list(cells[known:]))

        choice = Choice(conversation, sampling, cells_of)
        prompt = self._read(conversation, replace(sampling, max_tokens=max(choice.longest, 1)))
        yield from choice.answer(prompt, behind, self._vocabulary)

    def generate_batch(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> Iterator[tuple[int, Token]]:
        """Answer many conversations, one after the other."""
        for index, conversation in enumerate(conversations):
            for token in self.generate(conversation, sampling):
                yield index, token

    def prompt_ids(self, conversation: Conversation) -> list[int | str]:
        """Ids of the prompt, with the string "image" at each image slot."""
        return flat(self._pieces(conversation))

    def first_logits(self, conversation: Conversation) -> npt.NDArray[np.float32]:
        """Logits (V,) of the answer's first token, for parity checks."""
        return np.array(self._read(conversation, Sampling(max_tokens=1)).logits, np.float32)

    def image_features(self, image: Image) -> npt.NDArray[np.float32]:
        """A picture's features (N, D), for parity checks."""
        return self._features(image)[0].rows.float().cpu().numpy()

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing."""
        self._model = None
        self._kept.clear()
        self._forget()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _forget(self) -> None:
        """Empty the context."""
        from transformers import DynamicCache

        self._cells: list[Cell] = []
        self._cache = DynamicCache()

    def _pieces(self, conversation: Conversation) -> tuple[Piece, ...]:
        return tokenise(runs(render(conversation, self._format)), self._vocabulary)

    def _read(self, conversation: Conversation, sampling: Sampling) -> answer.Prefilled:
        """Read a prompt as far as it is not in the context already."""
        started = time.perf_counter()
        if self._model is None:
            raise LlavaError("the engine was closed")
        pieces = self._pieces(conversation)
        with _out_of_memory(self.files.reference):
            found = [self._features(image) for image in conversation.images]
        pictures = [features for features, _ in found]
        seen = time.perf_counter()
        cells = _cells(pieces, conversation.images, pictures)
        self._room = answer.room_for(len(cells), sampling, self._limit, self.files.reference)
        reused = self._keep(cells[:-1])  # at least one position is read: it gives the logits
        logits = self._forward(self._embedded(pieces, pictures)[:, reused:], cells[reused:])
        image_tokens = sum(len(pictures[p.image].rows) for p in pieces if p.image is not None)
        stats = Stats(
            prompt_tokens=len(cells) - image_tokens,
            image_tokens=image_tokens,
            load_s=self._load_s,
            image_s=seen - started,
            prefill_s=time.perf_counter() - seen,
            cache_image="off" if not found else "hit" if all(hit for _, hit in found) else "miss",
            prefix_tokens_reused=reused,
            images=tuple(
                ImageInfo(image.source, picture.width, picture.height, len(picture.rows))
                for image, picture in zip(conversation.images, pictures, strict=True)
            ),
        )
        return answer.Prefilled(logits, started, stats)

    def _keep(self, cells: Sequence[Cell]) -> int:
        """Forget all but the beginning that `cells` shares with what was read; its length."""
        shared = 0
        for mine, theirs in zip(self._cells, cells, strict=False):
            if mine != theirs:
                break
            shared += 1
        if shared < len(self._cells):
            self._cache.crop(shared - len(self._cells))
            del self._cells[shared:]
        return shared

    @torch.inference_mode()
    def _embedded(self, pieces: Sequence[Piece], pictures: Sequence[Features]) -> torch.Tensor:
        """The whole prompt as input rows (1, S, D)."""
        embed = self._model.get_input_embeddings()
        parts = []
        for piece in pieces:
            if piece.image is None:
                ids = torch.tensor(piece.ids, dtype=torch.long, device=self.device)
                parts.append(embed(ids))
            else:
                parts.append(pictures[piece.image].rows)
        return torch.cat(parts)[None]

    @torch.inference_mode()
    def _forward(self, rows: torch.Tensor, cells: Sequence[Cell]) -> npt.NDArray[np.float32]:
        """Read input rows (1, S, D) behind what was read; the logits (V,) behind the last one."""
        try:
            with _out_of_memory(self.files.reference):
                output = self._model(
                    inputs_embeds=rows,
                    past_key_values=self._cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
        except BaseException:
            self._forget()  # some layers have read the rows, others have not
            raise
        self._cells += cells
        logits: npt.NDArray[np.float32] = output.logits[0, -1].float().cpu().numpy()
        return logits

    @torch.inference_mode()
    def _advance(self, token: int) -> npt.NDArray[np.float32] | None:
        if len(self._cells) >= self._room:
            return None
        ids = torch.tensor([[token]], dtype=torch.long, device=self.device)
        return self._forward(self._model.get_input_embeddings()(ids), (token,))

    @torch.inference_mode()
    def _features(self, image: Image) -> tuple[Features, bool]:
        """A picture's features, and whether they were kept from before."""
        identity = (image.sha256, image.background)
        if identity in self._kept:
            self._kept.move_to_end(identity)
            return self._kept[identity], True
        picture = image.open()
        pixels = torch.from_numpy(normalise(prepare(picture, self._pixels), self._pixels))
        batch = pixels[None].to(self.device, self._model.dtype)
        output = self._model.get_image_features(pixel_values=batch)
        rows = getattr(output, "pooler_output", output)[0]
        features = Features(rows.reshape(-1, rows.shape[-1]), *picture.size)
        self._kept[identity] = features
        if len(self._kept) > _KEPT_PICTURES:
            self._kept.popitem(last=False)
        return features, False


def _load_model(files: ModelFiles, dtype: torch.dtype) -> Any:
    """The model with all its weights, or the reason why not."""
    import transformers

    logging: Any = transformers.utils.logging
    auto: Any = transformers.AutoModelForImageTextToText

    kind = files.config.get("model_type")
    if kind != "llava":
        raise ModelInvalid(
            f"{files.reference} is of model type {kind!r}, which is not supported yet",
            "use a LLaVA-1.5 style model (model type llava)",
        )
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = auto.from_pretrained(
            files.path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if _is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelInvalid(
            f"cannot load {files.path}: {reason}", "check its config.json"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in report.get(what) or ()):
            raise ModelInvalid(
                f"the weights of {files.path} do not fit its config.json: {names[0]} "
                f"({len(names)} in all)",
                "download or export the model again",
            )
    return model.eval()


def _pixel_config(files: ModelFiles) -> PixelConfig:
    for name in PREPROCESSORS:
        path = files.path / name
        if path.is_file():
            settings = read_json(path)
            if "image_processor" in settings or "image_mean" in settings or "size" in settings:
                return PixelConfig.from_preprocessor(settings)
    raise ModelInvalid(f"{files.path} has no settings for pictures", "add preprocessor_config.json")


def _end_ids(model: Any) -> set[int]:
    """All ids with which the model's own settings end an answer."""
    ends: set[int | None] = set()
    configs = (model.generation_config, model.config, model.config.get_text_config())
    for config in configs:
        found = getattr(config, "eos_token_id", None)
        ends.update(found if isinstance(found, (list, tuple)) else [found])
    return {end for end in ends if end is not None}


def _cells(
    pieces: Sequence[Piece], images: Sequence[Image], pictures: Sequence[Features]
) -> list[Cell]:
    """What will stand at each position of the context."""
    cells: list[Cell] = []
    for piece in pieces:
        if piece.image is None:
            cells += piece.ids
        else:
            image = images[piece.image]
            key = f"{image.sha256}:{image.background}"
            cells += [(key, row) for row in range(len(pictures[piece.image].rows))]
    return cells


def _device(wanted: str) -> str:
    """A device of this machine."""
    there = "cpu"
    if torch.cuda.is_available():
        there = "cuda"
    elif torch.backends.mps.is_available():
        there = "mps"
    name, _, number = wanted.partition(":")
    if wanted == "auto":
        return there
    if name not in ("cpu", there):
        raise LlavaError(
            f"PyTorch finds no {name} device on this machine", "use --device auto or cpu"
        )
    if number and not (number.isdigit() and int(number) < torch.cuda.device_count()):
        raise LlavaError(f"there is no device {wanted}", "see `llava doctor`")
    return wanted


def _dtype(wanted: str | None, device: str) -> torch.dtype:
    """float32 on a CPU, 16 bits elsewhere."""
    if wanted is not None:
        if wanted not in DTYPES:
            raise LlavaError(f"unknown dtype: {wanted}", f"known: {', '.join(DTYPES)}")
        return DTYPES[wanted]
    if device == "cpu":
        return torch.float32
    if device.startswith("cuda") and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float16


@contextmanager
def _out_of_memory(reference: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if _is_out_of_memory(error):
            raise OutOfMemory(
                f"{reference} does not fit into memory",
                "use a smaller or quantised model, or --device cpu",
            ) from error
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate")
    return isinstance(error, (RuntimeError, OSError)) and any(sign in text for sign in signs)
