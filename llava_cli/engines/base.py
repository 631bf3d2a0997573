"""What every engine promises, and the values that pass through it.

Not here: how tokens are computed (`pytorch.py`, `gguf/`), how prompts are written (`prompts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llava_cli.conversation import Conversation
from llava_cli.errors import LlavaError
from llava_cli.models.files import ModelFiles

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the default is greedy."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    """Texts that end the answer, beside the prompt format's own; never part of the answer."""
    top_logprobs: int = 0
    """How many candidates of the first token to report."""
    choices: tuple[tuple[str, ...], ...] = ()
    """What may be answered; each with other writings of the same answer behind it."""
    schema: str | None = None
    """A JSON schema, as text, that the answer follows."""


@dataclass(frozen=True)
class Candidate:
    """One candidate of the first token."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class ImageInfo:
    """What became of one picture."""

    source: str
    width: int
    """Pixels of the upright picture."""
    height: int
    tokens: int
    """Positions it takes in the language model's context."""


@dataclass(frozen=True)
class Stats:
    """Counts and seconds of one answer."""

    prompt_tokens: int = 0
    """Text tokens of the prompt, without image positions."""
    image_tokens: int = 0
    completion_tokens: int = 0
    load_s: float = 0.0
    image_s: float = 0.0
    """Decoding, preparing and encoding the pictures."""
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    """From the call of generate to the first token."""
    decode_s: float = 0.0
    cache_image: Literal["hit", "miss", "off"] = "off"
    prefix_tokens_reused: int = 0
    images: tuple[ImageInfo, ...] = field(default=())

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed; 0 where nothing was decoded."""
        return self.completion_tokens / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Token:
    """A piece of an answer: whole UTF-8 characters, possibly none.

    The last one of a stream carries `finish_reason` and `stats`; the first one carries
    `candidates` when `Sampling.top_logprobs` asks for them.
    """

    text: str
    id: int | None = None
    """None for the closing token of a stream, which carries only what was held back."""
    candidates: tuple[Candidate, ...] = ()
    finish_reason: FinishReason | None = None
    stats: Stats | None = None
    probabilities: tuple[tuple[str, float], ...] = ()
    """Of every choice; with the closing token, where `Sampling.choices` is given."""


class Audience(Protocol):
    """Who waits for a batch's answers: some come later, some go early, some ask in vain.

    An engine that cannot take more while it computes leaves `more` alone: they wait for the next
    batch. `gone` may be asked from any thread, the others are called in the engine's.
    """

    def more(self) -> Sequence[tuple[Conversation, Sampling]]:
        """Those that have come since the last call; they take the next indexes."""
        ...

    def gone(self, index: int) -> bool:
        """Whether nobody waits for this answer any more: it ends at once, with no closing token."""
        ...

    def failed(self, index: int, error: LlavaError) -> None:
        """What is wrong with this conversation alone; the others are answered."""
        ...


class Engine(Protocol):
    """A loaded model that answers conversations."""

    name: str
    """`gguf` or `torch`."""
    device: str
    files: ModelFiles
    prompt_format: str

    def generate(self, conversation: Conversation, sampling: Sampling) -> Iterator[Token]:
        """Stream the answer to the last user turn; a last assistant turn is continued (prefill).

        With `Sampling.choices` the answer is one of them, in one piece.
        """
        ...

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        audience: Audience | None = None,
    ) -> Iterator[tuple[int, Token]]:
        """Answer many conversations; tokens come tagged with the conversation's index.

        Without an `audience` all are wanted, and the first error ends the batch.
        """
        ...

    def prompt_ids(self, conversation: Conversation) -> list[int | str]:
        """Ids of the prompt, with the string "image" at each image slot (for parity checks)."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
