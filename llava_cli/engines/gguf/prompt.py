"""What a conversation is for the language model: cells, and the reading of them into a context."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.base import Sampling, Stats
from llava_cli.engines.gguf.context import Cell, Context, Logits
from llava_cli.engines.gguf.grammar import Grammar, gbnf_of
from llava_cli.engines.gguf.language import LanguageModel
from llava_cli.engines.gguf.pictures import Picture, Pictures
from llava_cli.engines.tokenise import Piece, tokenise
from llava_cli.errors import LlavaError
from llava_cli.images import Image
from llava_cli.prompts import PromptFormat, render, runs


@dataclass(frozen=True)
class Prompt:
    """One conversation, written down."""

    pieces: tuple[Piece, ...]
    images: tuple[Image, ...]
    pictures: tuple[Picture, ...]
    """What is known of each image."""

    @cached_property
    def cells(self) -> list[Cell]:
        """What will stand at each position of the context."""
        cells: list[Cell] = []
        for piece in self.pieces:
            if piece.image is None:
                cells += piece.ids
            else:
                picture = self.pictures[piece.image]
                cells += [(picture.key, row) for row in range(picture.count)]
        return cells

    @cached_property
    def picture_ends(self) -> tuple[int, ...]:
        """The positions behind each picture."""
        ends, place = [], 0
        for piece in self.pieces:
            place += len(piece.ids) if piece.image is None else self.pictures[piece.image].count
            if piece.image is not None:
                ends.append(place)
        return tuple(ends)

    @property
    def last_picture_end(self) -> int:
        """0 where there is no picture."""
        return self.picture_ends[-1] if self.picture_ends else 0

    @property
    def text_in_front(self) -> int:
        """Positions in front of the first picture."""
        first = self.pieces[0] if self.pieces else Piece()
        return len(first.ids)


class Reader:
    """Writes conversations down for one model and reads them into its contexts."""

    def __init__(
        self,
        text: LanguageModel,
        prompt_format: PromptFormat,
        pictures: Pictures,
        reference: str,
        load_s: float,
    ) -> None:
        self.text = text
        self.pictures = pictures
        self._format = prompt_format
        self._reference = reference
        self._load_s = load_s

    def pieces(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Token ids and picture slots."""
        return tokenise(runs(render(conversation, self._format)), self.text.vocabulary)

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
        place = 0
        last = len(prompt.cells) if end is None else end
        logits: Logits | None = None
        for piece in prompt.pieces:
            picture = None if piece.image is None else prompt.pictures[piece.image]
            length = len(piece.ids) if picture is None else picture.count
            skip, stop = max(start - place, 0), min(last - place, length)
            place += length
            if skip >= stop:
                continue
            if picture is None or piece.image is None:
                logits = context.read_tokens(piece.ids[skip:stop], sequence)
            else:
                rows = self.pictures.rows(prompt.images[piece.image])[:stop]
                logits = context.read_rows(rows, picture.key, skip, sequence)
        if logits is None:
            raise LlavaError("the prompt is empty", "ask something")
        return logits

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
