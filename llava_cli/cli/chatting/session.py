"""A chat: a conversation, the pictures staged for its next turn, the model that answers.

Knows turns; what a slash command does is in `commands`. Pictures that were sent stay part of the
conversation, so the engine finds them and all earlier tokens in its caches.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from llava_cli.cli import answering, models, remembering
from llava_cli.cli.options import Common
from llava_cli.conversation import Conversation, Message
from llava_cli.engines.base import Engine, Sampling, Stats, Token
from llava_cli.errors import LlavaError, UsageError
from llava_cli.images import Image, locate_all
from llava_cli.terminal.answers import MarkdownMode, answer_stream
from llava_cli.terminal.documents import write_json_line
from llava_cli.terminal.streams import note


class Chat:
    """The state of one `llava chat`."""

    def __init__(
        self,
        choice: models.ModelChoice,
        sampling: Sampling,
        common: Common,
        *,
        background: str = "white",
        markdown: MarkdownMode = "auto",
        log: bool = True,
    ) -> None:
        self.choice = choice
        self.sampling = sampling
        self.common = common
        self.conversation = Conversation()
        self.staged: list[Image] = []
        self.thread: int | None = None
        self.last: answering.Answer | None = None
        self.interactive = True
        """Ctrl-C ends an answer; where nobody types, it ends everything."""
        self._background = background
        self._markdown = markdown
        self._log = log
        self._engine: Engine | None = None
        self._remembered: list[int] = []
        """Numbers of this chat's exchanges in the history."""

    @property
    def engine(self) -> Engine:
        """The model, loaded when first needed."""
        if self._engine is None:
            self._engine = models.load(self.choice, self.common)
        return self._engine

    def switch(self, reference: str | None) -> None:
        """Answer with another model from now on; the old one again where that fails."""
        from llava_cli import models as files

        wanted = replace(  # what belonged to the old model stays with it
            self.choice,
            model=reference,
            mmproj=None,
            adapter=None,
            base=None,
            vision_tower=None,
        )
        if wanted.engine != "server":
            offline = self.common.offline or models.hub_is_offline()
            files.resolve(wanted.model, mmproj=None, engine=wanted.engine, offline=offline)
        self.close()  # two models may not fit side by side
        old, self.choice = self.choice, wanted
        try:
            self._engine = models.load(wanted, self.common)
        except LlavaError:
            self.choice = old
            raise

    def stage(self, text: str) -> list[Image]:
        """Decode pictures for the next message; nothing is staged where one cannot be used."""
        found = locate_all(text, self._background)
        if not found:
            raise UsageError(f"{text}: no such picture", "give a path, a pattern, a URL or @clip")
        for image in found:
            if image.kind == "url" and self.common.offline:
                raise UsageError(f"{image.source}: needs the network", "leave out --offline")
        loaded = [image.loaded() for image in found]
        self.staged += loaded
        return loaded

    def say(self, text: str) -> None:
        """Send a message with what is staged, and show the answer."""
        asked = self.conversation.add("user", *self.staged, text)
        if self._answer(asked):
            self.staged = []

    def regenerate(self) -> None:
        """Answer the last question once more."""
        messages = self.conversation.messages
        if not messages or messages[-1].role != "assistant":
            raise UsageError("there is no answer yet", "ask something first")
        if self._answer(Conversation(messages[:-1])):
            self._forget_last(keep=1)

    def undo(self) -> Message:
        """Take back the last question and its answer; its pictures are staged again."""
        messages = self.conversation.messages
        if not messages or messages[-1].role != "assistant":
            raise UsageError("there is nothing to take back", "ask something first")
        question = messages[-2]
        self.conversation = Conversation(messages[:-2])
        self.staged = [*question.images, *self.staged]
        self._forget_last()
        return question

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.conversation.messages[:1]
        return first[0].text if first and first[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = tuple(m for m in self.conversation.messages if m.role != "system")
        lead = Conversation().add("system", text).messages if text is not None else ()
        self.conversation = Conversation(lead + rest)

    def clear(self) -> None:
        """A new conversation with the same model and system message."""
        system = self.system
        self.conversation, self.staged, self.thread = Conversation(), [], None
        self._remembered = []
        self.system = system

    def continue_with(self, conversation: Conversation, thread: int | None) -> None:
        """Go on from an earlier conversation."""
        self.conversation, self.thread = conversation, thread
        self._remembered = []

    def close(self) -> None:
        """Free the model."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _forget_last(self, keep: int = 0) -> None:
        """What was taken back is no part of the thread that is continued later."""
        if len(self._remembered) > keep:
            remembering.forget(self._remembered.pop(-1 - keep))

    def _answer(self, asked: Conversation) -> bool:
        """Stream an answer; whether there is one (a stopped one counts if it said anything)."""
        engine = self.engine
        out = None if self.common.json else answer_stream(sys.stdout, self._markdown)
        collector = answering.Collector()
        stopped = False
        with interruptible() as wants_stop:
            tokens = engine.generate(asked, self.sampling)
            try:
                for token in tokens:
                    collector.add(token)
                    if out is not None and token.text:
                        out.write(token.text)
                    if wants_stop.is_set() and token.finish_reason is None:
                        stopped = True
                        break
            finally:
                close = getattr(tokens, "close", None)
                if close is not None:
                    close()
                if out is not None:
                    out.close()
        if stopped and not self.interactive:
            raise KeyboardInterrupt
        if stopped:
            note("stopped")
            collector.add(Token("", finish_reason="length", stats=Stats()))
        answer = collector.answer()
        if stopped and not answer.text.strip():
            return False
        self.last = answer
        self.conversation = asked.add("assistant", answer.text)
        if self.common.json:
            write_json_line(answering.document(answer, engine, top_logprobs=False))
        if remembering.is_on(not self._log):
            found = remembering.remember(asked, answer, engine, "chat", self.thread)
            if found is not None:
                self.thread = found.thread
                self._remembered.append(found.id)
        return True

    def sampling_values(self) -> dict[str, Any]:
        """What /set shows."""
        names = (
            *("temperature", "top_p", "top_k", "min_p", "repeat_penalty"),
            *("seed", "max_tokens", "stop"),
        )
        return {name: getattr(self.sampling, name) for name in names}


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C asks for a stop between two tokens; a second one interrupts at once.

    An exception in the middle of a computation would leave the engine's caches in doubt.
    """
    wanted = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if wanted.is_set():
            raise KeyboardInterrupt
        wanted.set()

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: nobody can press Ctrl-C here
        yield wanted
        return
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGINT, before)
