"""The PyTorch engine: transformers' LLaVA classes behind the `Engine` protocol.

Prompt ids and pixels are made the same way as in the GGUF engine; the model only computes. Nothing
is downloaded and no code that comes with a model is run. Legend: S positions, D width, N picture
tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import Audience, ImageInfo, Sampling, Stats, Token
from llava_cli.engines.choices import Choice
from llava_cli.engines.formats import choose_format
from llava_cli.engines.hf_vocabulary import HfVocabulary
from llava_cli.engines.pytorch_batch import Batch, Row
from llava_cli.engines.pytorch_setup import Setup, load_model, out_of_memory
from llava_cli.engines.tokenise import Piece, flat, tokenise
from llava_cli.errors import LlavaError, ModelInvalid, UsageError
from llava_cli.images import Image
from llava_cli.models.files import ModelFiles
from llava_cli.models.folders import PREPROCESSORS, read_json
from llava_cli.pixels import PixelConfig, normalise, prepare
from llava_cli.prompts import render, runs
from llava_cli.tiles import Grid, square_config

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

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
        threads: int | None = None,
        prompt_format: str | None = None,
        context: int | None = None,
        setup: Setup = Setup(),  # noqa: B008 - frozen
    ) -> None:
        started = time.perf_counter()
        self.files = files
        self._format = choose_format(files, prompt_format)
        self.prompt_format = self._format.name
        if threads:
            torch.set_num_threads(threads)
        self._pixels = _pixel_config(files)
        self._model, self.device = load_model(files, setup)
        self._grid = _grid(self._model.config, self._pixels.size)
        self._vocabulary = HfVocabulary.from_folder(files.path, end_token_ids(self._model))
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
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        audience: Audience | None = None,
    ) -> Iterator[tuple[int, Token]]:
        """Answer many conversations, several at a time."""
        if sampling.choices or sampling.schema is not None:
            for index, conversation in enumerate(conversations):
                for token in self.generate(conversation, sampling):
                    yield index, token
            return
        yield from Batch(self, sampling, audience=audience).run(conversations)

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
        row = self.row(conversation, sampling)
        self._room = row.room
        reused = self._keep(row.cells[:-1])  # at least one position is read: it gives the logits
        began = time.perf_counter()
        logits = self._forward(row.rows[:, reused:], row.cells[reused:])
        prefill_s = time.perf_counter() - began
        stats = replace(row.stats, prefill_s=prefill_s, prefix_tokens_reused=reused)
        return answer.Prefilled(logits, row.started, stats)

    def row(self, conversation: Conversation, sampling: Sampling) -> Row:
        """A prompt with its pictures, ready to be read."""
        started = time.perf_counter()
        if self._model is None:
            raise LlavaError("the engine was closed")
        pieces = self._pieces(conversation)
        with out_of_memory(self.files.reference):
            found = [self._features(image) for image in conversation.images]
            pictures = [features for features, _ in found]
            rows = self._embedded(pieces, pictures)
        cells = _cells(pieces, conversation.images, pictures)
        image_tokens = sum(len(pictures[p.image].rows) for p in pieces if p.image is not None)
        stats = Stats(
            prompt_tokens=len(cells) - image_tokens,
            image_tokens=image_tokens,
            load_s=self._load_s,
            image_s=time.perf_counter() - started,
            cache_image="off" if not found else "hit" if all(hit for _, hit in found) else "miss",
            images=tuple(
                ImageInfo(image.source, picture.width, picture.height, len(picture.rows))
                for image, picture in zip(conversation.images, pictures, strict=True)
            ),
        )
        room = answer.room_for(len(cells), sampling, self._limit, self.files.reference)
        continued = answer.is_continued(conversation)
        return Row(rows, cells, room, started, stats, continued)

    def writer(self, prompt: answer.Prefilled, sampling: Sampling, row: Row) -> answer.Writer:
        """What makes a row's logits into tokens."""
        return answer.Writer(
            prompt, self._vocabulary, self._format, sampling, continued=row.continued
        )

    @property
    def model(self) -> Any:
        """transformers' own model."""
        return self._model

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
            with out_of_memory(self.files.reference):
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
        features = Features(self._encoded(picture), *picture.size)
        self._kept[identity] = features
        if len(self._kept) > _KEPT_PICTURES:
            self._kept.popitem(last=False)
        return features, False

    def _encoded(self, picture: PILImage) -> torch.Tensor:
        """What tower and projector make of a picture, or of its tiles: (N, D)."""
        if self._grid is None:
            squares, sizes = [prepare(picture, self._pixels)], {}
        else:
            squares = self._grid.squares(picture, self._pixels)
            sizes = {"image_sizes": torch.tensor([[picture.height, picture.width]])}
        pixels = np.stack([normalise(square, self._pixels) for square in squares])
        batch = torch.from_numpy(pixels).to(self.device, self._model.dtype)
        output = self._model.get_image_features(
            pixel_values=batch if self._grid is None else batch[None], **sizes
        )
        rows: torch.Tensor = getattr(output, "pooler_output", output)[0]
        return rows.reshape(-1, rows.shape[-1])


def _grid(config: Any, size: int) -> Grid | None:
    """How a loaded model cuts pictures into tiles; None for LLaVA-1.5."""
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if not pinpoints:
        return None
    pairs = tuple((int(height), int(width)) for height, width in pinpoints)
    return Grid(pairs, size, size // int(config.vision_config.patch_size))


def _pixel_config(files: ModelFiles) -> PixelConfig:
    for name in PREPROCESSORS:
        path = files.path / name
        if path.is_file():
            settings = read_json(path)
            if "image_processor" in settings or "image_mean" in settings or "size" in settings:
                tiled = files.config.get("model_type") == "llava_next"
                return (square_config if tiled else PixelConfig.from_preprocessor)(settings)
    raise ModelInvalid(f"{files.path} has no settings for pictures", "add preprocessor_config.json")


def end_token_ids(model: Any) -> set[int]:
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
