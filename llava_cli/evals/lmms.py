"""Our engines as a model of lmms-eval, another harness: `lmms-eval --model llava_cli --tasks ...`.

lmms-eval finds `manifest` by its entry point `lmms_eval.models` and imports this module itself;
nothing of ours does, for it brings torch and a hundred other packages (extra `lmms`). Its numbers
differ from `llava eval`'s: its prompts, filters and metrics are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lmms_eval.api.model import lmms

from llava_cli.conversation import Conversation
from llava_cli.engines import Engine
from llava_cli.engines.base import Sampling
from llava_cli.errors import UsageError
from llava_cli.images import Image

MODEL_ID = "llava_cli"
MAX_TOKENS = 1024
"""Where a task does not say."""
_MARK = "<image>"

Request = tuple[str, dict[str, Any], Any, int, str, str]
"""lmms-eval's arguments of a simple model: text, settings, pictures of a document, its place."""


def manifest() -> Any:
    """What lmms-eval's entry point asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, simple_class_path=f"{__name__}.LlavaCli")


class LlavaCli(lmms):
    """An engine behind lmms-eval's interface; `--model_args model=REF,engine=gguf,threads=4`."""

    is_simple = True

    def __init__(
        self,
        model: str | None = None,
        engine: str = "auto",
        device: str = "auto",
        threads: int | str | None = None,
        prompt_format: str | None = None,
        mmproj: str | None = None,
        batch_size: int | str = 64,
        **_: Any,
    ) -> None:
        from llava_cli import engines, models

        super().__init__()
        files = models.resolve(model, mmproj=mmproj, engine=engine)
        self._engine: Engine = engines.load(
            files,
            engine=engine,
            device=device,
            threads=None if threads is None else int(threads),
            prompt_format=prompt_format,
        )
        self._window = max(1, int(batch_size)) if str(batch_size).isdigit() else 64

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers to requests, in their order."""
        answers: dict[int, str] = {}
        for sampling, places in self._alike(requests):
            for start in range(0, len(places), self._window):
                window = places[start : start + self._window]
                conversations = [self._conversation(requests[place].args) for place in window]
                for index, text in self._texts(conversations, sampling):
                    answers[window[index]] = text
        for place, request in enumerate(requests):
            text, settings = request.args[0], request.args[1]
            self.cache_hook.add_partial("generate_until", (text, settings), answers[place])
        return [answers[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered by the engines."""
        raise UsageError(
            "this task compares likelihoods of answers, which our engines do not give",
            "choose a task that generates text",
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered."""
        raise UsageError("tasks of several rounds are not supported", "choose another task")

    def _alike(self, requests: Sequence[Any]) -> Iterator[tuple[Sampling, list[int]]]:
        """Requests by their sampling, which an engine applies to a whole batch."""
        groups: dict[Sampling, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(sampling_of(request.args[1]), []).append(place)
        yield from groups.items()

    def _conversation(self, request: Request) -> Conversation:
        text, _, doc_to_visual, doc_id, task, split = request
        pictures = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        images = [Image.from_pil(picture, f"{task} {split} {doc_id}") for picture in pictures]
        return Conversation().add("user", *images, text.replace(_MARK, "").strip())

    def _texts(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> Iterator[tuple[int, str]]:
        parts: dict[int, list[str]] = {}
        for index, token in self._engine.generate_batch(conversations, sampling):
            parts.setdefault(index, []).append(token.text)
            if token.finish_reason is not None:
                yield index, "".join(parts.pop(index)).strip()


def sampling_of(settings: dict[str, Any]) -> Sampling:
    """A task's generation settings as ours; greedy unless it samples."""
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    sampled = settings.get("do_sample", True) and settings.get("temperature")
    return Sampling(
        temperature=float(settings["temperature"]) if sampled else 0.0,
        top_p=float(settings.get("top_p") or 1.0) if sampled else 1.0,
        max_tokens=int(settings.get("max_new_tokens") or MAX_TOKENS),
        stop=tuple(text for text in stop if text.strip()),
    )
