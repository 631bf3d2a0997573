"""Conversations as frozen values: who said what, with which pictures.

Knows no prompt template and no tokenizer; `prompts.render` turns a conversation into segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llava_cli.images import Image

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn: a role and its text and pictures in order."""

    role: Role
    content: tuple[str | Image, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures, in order."""
        return tuple(part for part in self.content if not isinstance(part, str))


@dataclass(frozen=True)
class Conversation:
    """Turns in order; `add` gives a new conversation."""

    messages: tuple[Message, ...] = ()

    def add(self, role: Role, *content: str | Image) -> Conversation:
        """This conversation with one more turn."""
        return Conversation((*self.messages, Message(role, content)))

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures of all turns, in order: what `prompts.ImageSlot.index` counts."""
        return tuple(image for message in self.messages for image in message.images)
