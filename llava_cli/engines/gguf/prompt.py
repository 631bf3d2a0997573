"""What a conversation is for the language model: cells, and the reading of them into a context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import Sampling, Stats
from llava_cli.engines.chat_template import Write
from llava_cli.engines.gguf.context import Context, Logits
from llava_cli.engines.gguf.embeddings import Embeddings, Rows
from llava_cli.engines.gguf.grammar import Grammar, gbnf_of
from llava_cli.engines.gguf.language import LanguageModel
from llava_cli.engines.gguf.layout import Cell, Tile
from llava_cli.engines.gguf.pictures import Picture, Pictures
from llava_cli.engines.tokenise import Piece, tokenise
from llava_cli.errors import LlavaError
from llava_cli.images import Image
from llava_cli.prompts import PromptFormat, runs


@dataclass(frozen=True)
class Stretch:
    """Neighbouring cells that are read in one way: token ids, or a tile of a picture."""

    ids: tuple[int, ...] = ()
    tile: Tile | None = None
    image: int = 0
    """Index of the tile's picture."""
    row: int = 0
    """The tile's first row among those of its picture."""
    key: str = ""
    """Identity of the tile."""

    @cached_property
    def cells(self) -> list[Cell]:
        """What will stand there."""
        return list(self.ids) if self.tile is None else self.tile.cells(self.key)


@dataclass(frozen=True)
class Prompt:
    """One conversation, written down."""

    pieces: tuple[Piece, ...]
    images: tuple[Image, ...]
    pictures: tuple[Picture, ...]
    """What is known of each image."""

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """All of it, in order."""
        found: list[Stretch] = []
        for piece in self.pieces:
            if piece.image is None:
                found.append(Stretch(piece.ids))
            else:
                found += _picture_stretches(piece.image, self.pictures[piece.image])
        return tuple(found)

    @cached_property
    def cells(self) -> list[Cell]:
        """What will stand at each place of the context."""
        return [cell for stretch in self.stretches for cell in stretch.cells]

    def between(self, start: int, end: int) -> list[tuple[Stretch, slice]]:
        """The stretches of the cells from `start` up to `end`, and which part of each that is."""
        found, place = [], 0
        for stretch in self.stretches:
            length = len(stretch.cells)
            part = slice(max(start - place, 0), min(end - place, length))
            if part.start < part.stop:
                found.append((stretch, part))
            place += length
        return found

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles of all pictures."""
        return tuple(s.tile for s in self.stretches if s.tile is not None)

    @cached_property
    def picture_ends(self) -> tuple[int, ...]:
        """How many cells stand up to the end of each picture."""
        ends, place = [], 0
        for piece in self.pieces:
            place += len(piece.ids) if piece.image is None else self.pictures[piece.image].cells
            if piece.image is not None:
                ends.append(place)
        return tuple(ends)

    @property
    def last_picture_end(self) -> int:
        """0 where there is no picture."""
        return self.picture_ends[-1] if self.picture_ends else 0

    @property
    def text_in_front(self) -> int:
        """Cells in front of the first picture."""
        first = self.pieces[0] if self.pieces else Piece()
        return len(first.ids)


def _picture_stretches(image: int, picture: Picture) -> Iterator[Stretch]:
    """A picture's tiles and the token ids around them."""
    row = 0
    for part in picture.parts:
        if isinstance(part, Tile):
            key = f"{picture.key}:{row}" if row else picture.key
            yield Stretch(tile=part, image=image, row=row, key=key)
            row += part.count
        else:
            yield Stretch(part)


class Reader:
    """Writes conversations down for one model and reads them into its contexts."""

    def __init__(
        self,
        text: LanguageModel,
        prompt_format: PromptFormat,
        write: Write,
        pictures: Pictures,
        reference: str,
        load_s: float,
    ) -> None:
        self.text = text
        self.pictures = pictures
        self._format = prompt_format
        self._write = write
        self._reference = reference
        self._load_s = load_s

    def pieces(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Token ids and picture slots."""
        return tokenise(runs(self._write(conversation)), self.text.vocabulary)

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation's prompt; no picture's features are computed."""
        pieces, images = self.pieces(conversation), conversation.images
        return Prompt(pieces, images, tuple(self.pictures.look(image) for image in images))

    def room_for(self, prompt: int, sampling: Sampling) -> int:
        """Positions for a prompt of so many and its answer."""
        return answer.room_for(prompt, sampling, self.text.limit, self._reference)

    def read(
        self, context: Context, sequence: int, prompt: Prompt, start: int, end: int | None = None
    ) -> Logits:
        """Read the cells from `start` up to `end`; the logits (V,) behind the last one."""
        logits: Logits | None = None
        parts = prompt.between(start, len(prompt.cells) if end is None else end)
        pictures = any(stretch.tile is not None and not stretch.tile.whole for stretch, _ in parts)
        embed = self.text.embeddings if pictures else None

        def in_rows(part: tuple[Stretch, slice]) -> bool:
            tile = part[0].tile
            return embed is not None if tile is None else not tile.whole

        for together, group in groupby(parts, in_rows):
            if together:
                rows, cells = self._rows(prompt, list(group), embed)
                logits = context.read_rows(rows, cells, sequence)
                continue
            for stretch, part in group:
                if stretch.tile is None:
                    logits = context.read_tokens(stretch.ids[part], sequence)
                else:
                    rows = self._tile_rows(prompt, stretch)
                    logits = context.read_tile(rows, stretch.key, stretch.tile, sequence)
        if logits is None:
            raise LlavaError("the prompt is empty", "ask something")
        return logits

    def _rows(
        self, prompt: Prompt, parts: Sequence[tuple[Stretch, slice]], embed: Embeddings | None
    ) -> tuple[Rows, list[Cell]]:
        """Pictures and the words between them as rows (N, D), and their N cells."""
        rows: list[Rows] = []
        cells: list[Cell] = []
        for stretch, part in parts:
            if stretch.tile is None and embed is not None:
                rows.append(embed(stretch.ids[part]))
            else:
                rows.append(self._tile_rows(prompt, stretch)[part])
            cells += stretch.cells[part]
        return np.concatenate(rows), cells

    def _tile_rows(self, prompt: Prompt, stretch: Stretch) -> Rows:
        """The features (N, D) of a tile."""
        rows = self.pictures.rows(prompt.images[stretch.image])
        return rows[stretch.row : stretch.row + len(stretch.cells)]

    def stats(
        self, prompt: Prompt, *, image_s: float, prefill_s: float, hit: bool, reused: int
    ) -> Stats:
        """What is known of an answer before it is given."""
        image_tokens = sum(picture.count for picture in prompt.pictures)
        return Stats(
            prompt_tokens=len(prompt.cells) - image_tokens,
            image_tokens=image_tokens,
            load_s=self._load_s + self.pictures.load_s,
            image_s=image_s,
            prefill_s=prefill_s,
            cache_image="off" if not prompt.images else "hit" if hit else "miss",
            prefix_tokens_reused=reused,
            images=tuple(self.pictures.info(image) for image in prompt.images),
        )

    def writer(
        self, prompt: answer.Prefilled, conversation: Conversation, sampling: Sampling
    ) -> answer.Writer:
        """The answer to a conversation whose prompt was read."""
        grammar = None
        if sampling.schema is not None:
            grammar = Grammar(self.text.vocabulary, gbnf_of(sampling.schema))
        return answer.Writer(
            prompt,
            self.text.vocabulary,
            self._format,
            sampling,
            continued=answer.is_continued(conversation),
            constraint=grammar,
        )
