"""ScienceQA with a second model: the paper's two ensembles.

complement: the second model's answer, the first's where the second gives none. judge: where the two
differ the second model is asked again with both replies before it; the first's answer where that
reply names no option. Upstream's scripts replace a failure by a random choice; here it stays one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_cli.errors import UsageError
from llava_cli.evals import scienceqa, scienceqa_prompts
from llava_cli.evals.judge import ItemFailed, Judge, Message
from llava_cli.evals.judging import Job, Outcome, open_journal, work_off
from llava_cli.evals.rows import canonical
from llava_cli.evals.scienceqa import Problem
from llava_cli.evals.scoring import Notes, prediction_files

Mode = Literal["complement", "judge"]
Texts = Mapping[Any, str]
STATED = "Finish with one sentence of this form: The answer is X."
SYSTEM = "You answer multiple choice questions about science."


@dataclass(frozen=True)
class Choice:
    """The ensemble's answer to one problem."""

    problem: Problem
    text: str | None
    source: Literal["first", "second", "both", "judge", "none"]

    def row(self) -> dict[str, Any]:
        """As a prediction's row."""
        prompt = scienceqa_prompts.zero_shot(self.problem.row.data)
        key = str(self.problem.key)
        return {"question_id": key, "prompt": prompt, "text": self.text, "source": self.source}


def texts(paths: Sequence[Path]) -> dict[Any, str]:
    """A model's replies: LLaVA's rows, or upstream's summary."""
    answers: dict[Any, Any] = {}
    for path in prediction_files(tuple(paths)):
        scienceqa.read(path, answers, {}, Notes())
    return {key: answer.text for key, answer in answers.items()}


def option(problem: Problem, text: str | None) -> int | None:
    """The option a reply names."""
    return None if text is None else scienceqa.choice(text, problem.choices)


def complement(problems: Sequence[Problem], first: Texts, second: Texts) -> Iterator[Choice]:
    """The second model's answers, completed by the first's."""
    for problem in problems:
        one, two = first.get(problem.key), second.get(problem.key)
        if option(problem, two) is not None:
            yield Choice(problem, two, "second")
        else:
            yield Choice(problem, one, "none" if one is None else "first")


def differing(problems: Sequence[Problem], first: Texts, second: Texts) -> list[Problem]:
    """The problems to which the two give different answers, or one of them gives none."""
    return [
        problem
        for problem in problems
        if option(problem, first.get(problem.key)) != option(problem, second.get(problem.key))
    ]


def judged(
    problems: Sequence[Problem], first: Texts, second: Texts, again: Texts
) -> Iterator[Choice]:
    """The answer both give; where they differ the judge's, or the first's where it gives none."""
    asked = {problem.key for problem in differing(problems, first, second)}
    for problem in problems:
        one, reply = first.get(problem.key), again.get(problem.key)
        if problem.key not in asked:
            yield Choice(problem, one, "none" if one is None else "both")
        elif option(problem, reply) is not None:
            yield Choice(problem, reply, "judge")
        else:
            yield Choice(problem, one, "none" if one is None else "first")


def second_messages(problem: Problem) -> list[Message]:
    """The question as a model without eyes is asked it."""
    content = f"{scienceqa_prompts.question(problem.row.data, 'QCM')}\n{STATED}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def judge_messages(problem: Problem, first: str | None, second: str | None) -> list[Message]:
    """The question again, with what the two replied."""
    question = scienceqa_prompts.question(problem.row.data, "QCM")
    content = (
        f"{question}\n\nTwo replies to this question differ.\n\n[Reply 1]\n{first or '(none)'}\n\n"
        f"[Reply 2]\n{second or '(none)'}\n\nWeigh them, then decide. {STATED}"
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def ask(
    problems: Sequence[Problem],
    messages: Callable[[Problem], list[Message]],
    judge: Judge,
    path: Path,
    workers: int,
) -> tuple[dict[Any, str], Outcome]:
    """Replies of an endpoint to problems, kept in a journal; what is there is not asked again."""

    def job(problem: Problem) -> Job:
        def work() -> dict[str, Any]:
            reply = judge.ask(messages(problem), 0.0, 1024)
            if not reply.text.strip():
                raise ItemFailed("an empty reply")
            key = str(problem.key)
            return {"question_id": key, "text": reply.text.strip(), "model_id": reply.model}

        return Job((problem.key,), work)

    journal = open_journal(path, without=None)
    try:
        outcome = work_off(
            [job(p) for p in problems],
            journal,
            lambda row: (canonical(row.get("question_id")),),
            workers,
        )
    finally:
        journal.close()
    return {canonical(row["question_id"]): row["text"] for row in journal.rows}, outcome


def check_sources(mode: Mode, second: Any, judge_replies: Any, url: str | None) -> None:
    """Refuse what cannot work before anything is sent."""
    if second is None and url is None:
        raise UsageError(
            "the second model's answers are missing",
            "give them with --second, or an endpoint with --url and --judge-model",
        )
    if mode == "judge" and judge_replies is None and url is None:
        raise UsageError(
            "the judge's replies are missing",
            "give them with --judge-replies, or an endpoint with --url and --judge-model",
        )
