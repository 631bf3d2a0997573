"""`llava data generate`: from captions and boxes to LLaVA's three kinds of instruction data.

Two passes over the same plan. The first sends what has no answer in the journal yet; the second
turns answers into samples and writes them, in the plan's order. So a run that was killed is simply
run again, and nothing that was answered is asked twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError
from llava_train.datagen import answers
from llava_train.datagen.coco import Coco, Crowds
from llava_train.datagen.contexts import KINDS, Picture
from llava_train.datagen.endpoint import Endpoint
from llava_train.datagen.journal import Answer, Journal, request_key
from llava_train.datagen.pacing import Pace
from llava_train.datagen.plan import Task, quotas, tasks
from llava_train.datagen.prices import Budget, Estimate, Price, estimate
from llava_train.datagen.prompt_set import PromptSet
from llava_train.datagen.sending import Request, Sender, Sent
from llava_train.samples.card import source, write_card
from llava_train.samples.draws import draw
from llava_train.samples.files import Seen, whole
from llava_train.samples.paths import stays_inside
from llava_train.samples.reading import Form, Row
from llava_train.samples.writing import line, target, writers

NAME = "instruct"
TOKEN = "<image>"


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is asked and what is kept."""

    captions: Path
    instances: Path | None
    images: Path | None
    image_prefix: str
    kinds: tuple[str, ...]
    mix: dict[str, float]
    samples: int | None
    seed: int
    crowds: Crowds
    prompts: PromptSet
    model: str
    max_tokens: int
    """Of an answer."""
    options: dict[str, Any]
    """What else a request holds beside model and messages: the token limit, sampling."""
    limits: answers.Limits
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Sending:
    """How requests are sent; decides nothing about what comes out."""

    base_url: str | None
    api_key: str
    timeout_s: float
    concurrency: int
    attempts: int
    pace: Pace
    price: Price | None
    budget_money: float | None
    budget_tokens: int | None
    progress: Callable[[Sent], None] = lambda sent: None


@dataclass
class Outcome:
    """What a run left."""

    planned: dict[str, int]
    written: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""
    missing: int = 0
    """Samples without an answer so far."""
    sent: Sent = field(default_factory=Sent)
    files: dict[str, Path] = field(default_factory=dict)
    spent: dict[str, Any] = field(default_factory=dict)


class Generation:
    """One plan: the pictures, and which kinds are made of each."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.coco = Coco(settings.captions, settings.instances, settings.crowds)
        self.count = sum(1 for _ in self.pictures(self.coco.left_out))
        if not self.count:
            self.coco.close()
            reasons = ", ".join(f"{n} × {why}" for why, n in self.coco.left_out.items())
            raise DataError(
                f"{settings.captions}: no picture can be used ({reasons})",
                "captions name their picture by image_id; --images must hold the pictures",
            )
        self.digests = {kind: settings.prompts.digest(kind) for kind in KINDS}
        mix = {kind: settings.mix[kind] if kind in settings.kinds else 0.0 for kind in KINDS}
        if not any(mix.values()):
            mix = {kind: float(kind in settings.kinds) for kind in KINDS}
        self.planned = quotas(self.count, mix, settings.samples)

    def close(self) -> None:
        """Remove the temporary database."""
        self.coco.close()

    def pictures(self, left_out: Counter[str] | None = None) -> Iterator[Picture]:
        """Pictures that samples can be made of."""
        for picture in self.coco.pictures():
            name = self.settings.image_prefix + picture.file_name
            reason = self._unusable(picture.file_name, name)
            if reason is None:
                yield replace(picture, file_name=name)
            elif left_out is not None:
                left_out[reason] += 1

    def tasks(self) -> Iterator[Task]:
        """The samples to be made, in order."""
        return tasks(self.pictures(), self.count, self.planned, self.settings.seed)

    def body(self, task: Task) -> dict[str, Any]:
        """The request for a sample, as the endpoint gets it."""
        settings = self.settings
        messages = settings.prompts.messages(task.picture, task.kind)
        return {"model": settings.model, "messages": messages, **settings.options}

    def estimate(self, price: Price | None) -> Estimate:
        """What the whole plan would cost."""
        pairs = ((task.kind, self.body(task)["messages"]) for task in self.tasks())
        return estimate(pairs, self.settings.max_tokens, price)

    def _unusable(self, file_name: str, name: str) -> str | None:
        if not (stays_inside(file_name) and stays_inside(name)):
            return "picture outside the folder"
        if self.settings.images is not None and not (self.settings.images / name).is_file():
            return "picture not in --images"
        return None


def generate(settings: Settings, sending: Sending, out: Path) -> Outcome:
    """Send, write, and leave a card; what is already answered in `out` is not sent again."""
    with ExitStack() as stack:
        generation = Generation(settings)
        stack.callback(generation.close)
        endpoint = Endpoint(sending.base_url, sending.api_key, timeout_s=sending.timeout_s)
        journal = Journal(out / "journal.sqlite")
        stack.callback(journal.close)
        budget = Budget(sending.budget_money, sending.budget_tokens, sending.price)
        before = journal.spent()
        budget.spend(before.prompt_tokens, before.completion_tokens)
        sender = Sender(
            endpoint, journal, budget, sending.pace, sending.concurrency, sending.attempts,
            sending.progress,
        )  # fmt: skip
        outcome = Outcome(generation.planned)
        outcome.sent = sender.run(
            Request(request_key(body), body, settings.max_tokens, task.kind)
            for task in generation.tasks()
            for body in (generation.body(task),)
        )
        if not outcome.sent.interrupted:
            _write(generation, journal, out, outcome)
            outcome.spent = spending(journal, sending.price)
            _write_card(generation, endpoint.url, out, outcome)
    return outcome


def _write(generation: Generation, journal: Journal, out: Path, outcome: Outcome) -> None:
    """Samples, rejections and failures, from the journal."""
    settings = generation.settings
    paths = {form: target(out, NAME, form) for form in settings.forms}
    outcome.files = {form: path for form, path in paths.items()}
    seen = Seen()
    rejections, failures = out / "rejected.jsonl", out / "missing.jsonl"
    with (
        writers(paths, settings.images) as kept,
        whole(rejections) as rejected,
        whole(failures) as missing,
    ):
        for task in generation.tasks():
            key = request_key(generation.body(task))
            row = {"id": task.name, "image": task.picture.file_name, "kind": task.kind}
            answer = journal.answer(key)
            if answer is None:
                outcome.missing += 1
                why = journal.failure(key) or "not sent"
                missing.write(line({**row, "why": why, "request": key}) + "\n")
                continue
            try:
                made = make_sample(task, answer, settings, seen)
                kept.add({**made, "prompts": generation.digests[task.kind][:16]})
                outcome.written[task.kind] += 1
            except answers.Rejected as no:
                outcome.rejected[no.reason] += 1
                why_not = {"reason": no.reason, "detail": no.detail}
                rejected.write(
                    line({**row, **why_not, "answer": answer.text, "request": key}) + "\n"
                )
    seen.close()


def make_sample(task: Task, answer: Answer, settings: Settings, seen: Seen) -> Row:
    """A sample in LLaVA's layout; raises Rejected."""
    if answer.finish == "length":
        raise answers.Rejected("cut", f"{answer.completion_tokens} tokens")
    if answer.finish == "content_filter":
        raise answers.Rejected("withheld")
    turns = answers.parse(answer.text, task.kind)
    answers.check(turns, task.kind, settings.limits)
    if task.kind == "detail":
        questions = settings.prompts.questions("detail/questions.txt")
        question = questions[draw(settings.seed, task.name, "question", len(questions))]
        turns = ((question, turns[0][1]),)
    said = "\n".join(answers.normal(text) for turn in turns for text in turn)
    if not seen.add(f"{task.picture.file_name}\n{said}"):
        raise answers.Rejected("duplicate")
    rows = []
    first = draw(settings.seed, task.name, "place", 2) == 0
    for position, (question, reply) in enumerate(turns):
        if position == 0:
            question = f"{TOKEN}\n{question}" if first else f"{question}\n{TOKEN}"
        rows.append({"from": "human", "value": question})
        rows.append({"from": "gpt", "value": reply})
    return {
        "id": task.name,
        "image": task.picture.file_name,
        "kind": task.kind,
        "conversations": rows,
    }


def spending(journal: Journal, price: Price | None) -> dict[str, Any]:
    """What all runs into a journal cost, for its card."""
    spent = journal.spent()
    return {
        "requests_answered": spent.requests,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "cost": price.of(spent.prompt_tokens, spent.completion_tokens) if price else None,
        "requests_lost_that_may_have_been_billed": spent.lost_requests,
    }


def _write_card(generation: Generation, url: str, out: Path, outcome: Outcome) -> None:
    settings = generation.settings
    names = {"captions": settings.captions, "instances": settings.instances}
    content = {
        "seed": settings.seed,
        "source": {key: source(path) for key, path in names.items() if path is not None},
        "left_out_of_the_source": dict(sorted(generation.coco.left_out.items())),
        "language_model": {
            "model": settings.model,
            "endpoint": url,
            **settings.options,
        },
        "prompts_sha256": generation.digests,
        "worked_examples": {kind: len(settings.prompts.examples(kind)) for kind in KINDS},
        "crowd_objects": settings.crowds,
        "pictures": generation.count,
        "mixture": settings.mix,
        "planned": outcome.planned,
        "samples": {**{kind: outcome.written[kind] for kind in KINDS},
                    "all": sum(outcome.written.values())},
        "rejected": {**dict(sorted(outcome.rejected.items())),
                     "all": sum(outcome.rejected.values())},
        "without_an_answer": outcome.missing,
        "spent": outcome.spent,
        "files": {form: path.name for form, path in outcome.files.items()},
    }  # fmt: skip
    write_card(out, "Instruction data written by a language model", content, folder=True)
