"""MiniGPT-4's second-stage curation: describe, continue when short, repair, filter, hand to people.

1. A vision model describes every picture; where it stops after few words it is asked to go on,
   once, and both parts are joined (MiniGPT-4: at 80 tokens or fewer).
2. A language model repairs the text alone: repetitions, broken sentences; what is in order it
   gives back unchanged.
3. Apologies, texts that speak of their source, and what is too short or too long are left out.
4. What remains is written as samples, and as a table for people to check.

Descriptions are journalled like answers, so a killed run describes no picture twice.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Engine, Sampling
from llava_cli.errors import DataError, ImageError
from llava_cli.images import SUFFIXES, Image
from llava_train.datagen import answers
from llava_train.datagen.endpoint import Endpoint
from llava_train.datagen.generating import Sending, spending
from llava_train.datagen.journal import Answer, Journal, request_key
from llava_train.datagen.prices import Budget
from llava_train.datagen.prompt_set import PromptSet
from llava_train.datagen.sending import Request, Sender, Sent
from llava_train.samples.card import write_card
from llava_train.samples.draws import draw
from llava_train.samples.files import whole
from llava_train.samples.reading import Form
from llava_train.samples.writing import line, target, writers

NAME = "curated"
CONTINUE_AT = 80
"""Tokens up to which a description is continued."""


@dataclass(frozen=True)
class Settings:
    """What decides the result."""

    images: Path
    prompts: PromptSet
    describer: str
    """The vision model's name, for journal and card."""
    llm: str | None
    """None leaves the repair out."""
    max_tokens: int
    """Of a description, and of its continuation."""
    continue_at: int
    repair_tokens: int
    """Of a repaired description."""
    options: dict[str, Any]
    """What else a request for a repair holds beside model and messages."""
    seed: int
    limits: answers.Limits


@dataclass
class Outcome:
    """What a run left."""

    pictures: int = 0
    described: int = 0
    """By this run; the others were described before."""
    continued: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    written: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    sent: Sent = field(default_factory=Sent)
    spent: dict[str, Any] = field(default_factory=dict)


def pictures(folder: Path) -> list[str]:
    """Paths of a folder's pictures, relative to it, sorted."""
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not found:
        raise DataError(f"{folder} holds no pictures", "name the folder that they lie in")
    return found


def curate(
    settings: Settings, engine: Callable[[], Engine], sending: Sending | None, out: Path
) -> Outcome:
    """All steps; the engine is loaded only if a picture has no description yet."""
    names = pictures(settings.images)
    outcome = Outcome(pictures=len(names))
    journal = Journal(out / "journal.sqlite")
    try:
        _describe(settings, names, engine, journal, outcome)
        if sending is not None and settings.llm is not None:
            endpoint = Endpoint(sending.base_url, sending.api_key, timeout_s=sending.timeout_s)
            budget = Budget(sending.budget_money, sending.budget_tokens, sending.price)
            spent = journal.spent()
            budget.spend(spent.prompt_tokens, spent.completion_tokens)
            sender = Sender(
                endpoint, journal, budget, sending.pace, sending.concurrency, sending.attempts,
                sending.progress,
            )  # fmt: skip
            outcome.sent = sender.run(_repairs(settings, names, journal))
        if not outcome.sent.interrupted:
            _write(settings, names, journal, out, outcome)
            outcome.spent = spending(journal, sending.price if sending else None)
            _card(settings, out, outcome)
    finally:
        journal.close()
    return outcome


def _describe(
    settings: Settings,
    names: Sequence[str],
    load: Callable[[], Engine],
    journal: Journal,
    outcome: Outcome,
) -> None:
    """A description of every picture into the journal."""
    engine: Engine | None = None
    try:
        for name in names:
            key = _description_key(settings, name)
            if journal.answer(key) is not None:
                continue
            try:
                picture = Image.from_path(settings.images / name).loaded()
            except ImageError as error:
                outcome.broken[error.message] += 1
                journal.fail(key, error.message)
                continue
            engine = engine or load()
            text, tokens, continued = _said(settings, engine, picture)
            outcome.described += 1
            outcome.continued += continued
            journal.store(key, Answer(text, "stop", 0, 0, settings.describer))
    finally:
        if engine is not None:
            engine.close()


def _said(settings: Settings, engine: Engine, picture: Image) -> tuple[str, int, bool]:
    """(description, tokens, whether it was continued)."""
    sampling = Sampling(max_tokens=settings.max_tokens)
    asked = Conversation().add("user", picture, settings.prompts.texts["curate/describe.txt"])
    text, tokens = _answer(engine, asked, sampling)
    if tokens > settings.continue_at:
        return text, tokens, False
    further = asked.add("assistant", text).add(
        "user", settings.prompts.texts["curate/continue.txt"]
    )
    more, added = _answer(engine, further, sampling)
    return f"{text} {more}".strip(), tokens + added, True


def _answer(engine: Engine, conversation: Conversation, sampling: Sampling) -> tuple[str, int]:
    tokens = list(engine.generate(conversation, sampling))
    return "".join(token.text for token in tokens).strip(), len(tokens)


def _description_key(settings: Settings, name: str) -> str:
    """Hangs on the picture's bytes, the model and the prompts; a picture may move."""
    try:
        digest = hashlib.sha256((settings.images / name).read_bytes()).hexdigest()
    except OSError:
        digest = name
    texts = [settings.prompts.texts[f"curate/{part}.txt"] for part in ("describe", "continue")]
    return request_key(
        {
            "picture": digest,
            "model": settings.describer,
            "texts": texts,
            "max_tokens": settings.max_tokens,
            "continue_at": settings.continue_at,
        }
    )


def _repair_body(settings: Settings, text: str) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": settings.prompts.texts["curate/fix.txt"]},
        {"role": "user", "content": text},
    ]
    return {"model": settings.llm, "messages": messages, **settings.options}


def _repairs(settings: Settings, names: Sequence[str], journal: Journal) -> Iterator[Request]:
    for name in names:
        described = journal.answer(_description_key(settings, name))
        if described is not None and described.text:
            body = _repair_body(settings, described.text)
            yield Request(request_key(body), body, settings.repair_tokens)


def _write(
    settings: Settings, names: Sequence[str], journal: Journal, out: Path, outcome: Outcome
) -> None:
    questions = settings.prompts.questions("detail/questions.txt")
    forms: tuple[Form, ...] = ("json", "jsonl")
    paths = {form: target(out, NAME, form) for form in forms}
    with (
        writers(paths) as kept,
        whole(out / "rejected.jsonl") as rejected,
        whole(out / "check.csv") as check,
    ):
        table = csv.writer(check, lineterminator="\n")
        table.writerow(["id", "image", "description", "before_repair", "keep"])
        for name in names:
            described = journal.answer(_description_key(settings, name))
            answer = described
            if described is not None and settings.llm is not None:
                answer = journal.answer(request_key(_repair_body(settings, described.text)))
            if described is None or answer is None:
                outcome.missing += 1
                continue
            try:
                text = _accepted(answer, settings.limits)
            except answers.Rejected as no:
                outcome.rejected[no.reason] += 1
                row = {"image": name, "reason": no.reason, "detail": no.detail}
                rejected.write(line({**row, "answer": answer.text}) + "\n")
                continue
            outcome.written += 1
            question = questions[draw(settings.seed, name, "question", len(questions))]
            turns = [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": text},
            ]
            kept.add({"id": name, "image": name, "kind": "detail", "conversations": turns})
            table.writerow([name, name, text, described.text, ""])


def _accepted(answer: Answer, limits: answers.Limits) -> str:
    if answer.finish == "length":
        raise answers.Rejected("cut")
    if answer.finish == "content_filter":
        raise answers.Rejected("withheld")
    turns = answers.parse(answer.text, "detail")
    answers.check(turns, "detail", limits)
    return turns[0][1]


def _card(settings: Settings, out: Path, outcome: Outcome) -> None:
    texts = "".join(
        settings.prompts.texts[f"curate/{part}.txt"] for part in ("describe", "continue", "fix")
    )
    content = {
        "seed": settings.seed,
        "source": {"pictures": settings.images.name, "count": outcome.pictures},
        "describing_model": settings.describer,
        "repairing_model": settings.llm,
        "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
        "pictures_that_do_not_decode": dict(outcome.broken),
        "samples": outcome.written,
        "rejected": dict(outcome.rejected),
        "without_an_answer": outcome.missing,
        "spent": outcome.spent,
    }
    write_card(out, "Descriptions written by a model and repaired", content, folder=True)
