"""Judging a whole benchmark: jobs on threads, every reply on the disk as it comes, resumable.

A job is known by its key; what the journal holds is not judged again. LLaVA-Bench's journal is its
review file, a run each; MM-Vet's is turned into the organisers' grade file at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, LlavaError
from llava_cli.evals import judge_prompts as prompts
from llava_cli.evals.judge import BudgetSpent, ItemFailed, Judge
from llava_cli.evals.llavabench import FAILED, parse_review
from llava_cli.evals.mmvet import read_grade
from llava_cli.evals.rows import Row, canonical, read_rows, row_id, row_text
from llava_cli.evals.run import Journal
from llava_cli.evals.uploads import put

TRIES = 3
"""Requests for one review whose reply cannot be read."""
GRADE_TRIES = 5
"""Requests for one grade; the temperature rises by 0.5 with each."""
HIGHEST = 10.0
"""Best score of a review."""


@dataclass(frozen=True)
class Job:
    """One thing to ask the judge; `work` gives the row to be kept."""

    key: tuple[Any, ...]
    work: Callable[[], dict[str, Any]]


@dataclass
class Outcome:
    """What became of the jobs."""

    done: int = 0
    kept: int = 0
    """Found in the journal."""
    failures: list[str] = field(default_factory=list)
    """Without a reply: asked again by the next run."""
    left: int = 0
    """Not asked, because the budget was spent."""


def work_off(
    jobs: Iterable[Job], journal: Journal, key: Callable[[Mapping[str, Any]], Any], workers: int
) -> Outcome:
    """Run the jobs that the journal lacks; rows are written as they come, by this thread alone."""
    done = {key(row) for row in journal.rows}
    outcome = Outcome(kept=len(done))
    waiting = [job for job in jobs if job.key not in done]
    pool = ThreadPoolExecutor(workers)
    running: dict[Future[dict[str, Any]], Job] = {}
    queue = iter(waiting)
    fatal: LlavaError | None = None
    stopped = False
    try:
        while True:
            while not stopped and len(running) < workers and (job := next(queue, None)):
                running[pool.submit(job.work)] = job
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                try:
                    stopped = _take(future, job, journal, outcome) or stopped
                except LlavaError as error:  # concerns all: replies under way are still kept
                    fatal, stopped = error, True
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if fatal is not None:
        raise fatal
    outcome.left += sum(1 for _ in queue)
    return outcome


def _take(future: Future[dict[str, Any]], job: Job, journal: Journal, outcome: Outcome) -> bool:
    """Keep one job's row; tells whether the budget is spent."""
    try:
        journal.add(future.result())
        journal.sync()
        outcome.done += 1
    except ItemFailed as error:
        outcome.failures.append(f"{'/'.join(map(str, job.key))}: {error}")
    except BudgetSpent:
        outcome.left += 1
        return True
    return False


def open_journal(path: Path, *, without: Callable[[Mapping[str, Any]], bool] | None) -> Journal:
    """A journal to go on with; rows that `without` picks are taken out, to be asked again."""
    journal = Journal(path)
    journal.open()
    if without is not None and any(without(row) for row in journal.rows):
        kept = [row for row in journal.rows if not without(row)]
        journal.close()
        put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        journal = Journal(path)
        journal.open()
    return journal


def rows_by_id(path: Path, *texts: str) -> dict[Any, Row]:
    """Rows of a file by question_id; an id twice is an error."""
    found: dict[Any, Row] = {}
    for row in read_rows(path):
        key = row_id(row, "question_id")
        row_text(row, *texts)
        if key in found:
            raise row.bad(f"question {key!r} again, first in {found[key].where}")
        found[key] = row
    return found


@dataclass(frozen=True)
class Bench:
    """LLaVA-Bench's files, joined by id where upstream zips lines."""

    questions: dict[Any, Row]
    contexts: dict[str, Row]
    """By picture."""
    answers: dict[Any, Row]
    references: dict[Any, Row]

    @classmethod
    def read(cls, questions: Path, contexts: Path, answers: Path, references: Path | None) -> Bench:
        """Read and check; every question needs its context and, if there are any, its reference."""
        asked = rows_by_id(questions, "text")
        by_picture = {row_text(row, "image"): row for row in read_rows(contexts)}
        said = rows_by_id(answers, "text")
        gold = rows_by_id(references, "text") if references else {}
        for key, row in asked.items():
            if row_text(row, "image") not in by_picture:
                raise row.bad(f"no context for the picture {row.data['image']}")
            if references and key not in gold:
                raise DataError(f"{references}: no reference for question {key!r}", "add it")
        return cls(asked, by_picture, said, gold)

    def context(self, key: Any) -> Mapping[str, Any]:
        """A question's picture in words."""
        return self.contexts[row_text(self.questions[key], "image")].data


def reference_jobs(bench: Bench, judge: Judge) -> list[Job]:
    """Ask the text-only model for reference answers."""

    def job(key: Any, row: Row) -> Job:
        def work() -> dict[str, Any]:
            context = prompts.context_text(bench.context(key))
            request = prompts.reference_messages(context, row_text(row, "text"))
            for _ in range(TRIES):
                reply = judge.ask(request, 0.2, 1024)
                if reply.text.strip():
                    return {
                        "question_id": row.data["question_id"],
                        "text": reply.text.strip(),
                        "category": row_text(row, "category"),
                        "answer_id": prompts.digest(reply.text),
                        "model_id": reply.model,
                    }
            raise ItemFailed("only empty replies")

        return Job((key,), work)

    return [job(key, row) for key, row in bench.questions.items()]


def readable(text: str) -> tuple[float, float]:
    """The two scores of a review within the scale; (-1, -1) where they are not."""
    first, second = parse_review(text.strip())
    return (first, second) if 0 <= first <= HIGHEST and 0 <= second <= HIGHEST else FAILED


def review_jobs(
    bench: Bench,
    judge: Judge,
    rules: Mapping[str, Mapping[str, str]],
    *,
    swapped: bool = False,
    temperature: float = 0.2,
    max_tokens: int = 1024,
) -> list[Job]:
    """A review of every answered question, reference first; `swapped` turns the two around."""

    def job(number: int, key: Any) -> Job:
        question, answer, gold = bench.questions[key], bench.answers[key], bench.references[key]
        context = bench.context(key)
        name = prompts.rule_name(context, row_text(question, "category"))
        if name not in rules:
            raise question.bad(f"the rules have no {name}", "add it to the --rule file")
        pair = [row_text(gold, "text"), row_text(answer, "text")]
        first, second = reversed(pair) if swapped else pair
        content = prompts.review(
            prompts.context_text(context), row_text(question, "text"), first, second, rules[name]
        )

        def work() -> dict[str, Any]:
            scores, text, model = _reviewed(judge, content, temperature, max_tokens)
            return {
                "id": number,
                "question_id": question.data["question_id"],
                "answer1_id": answer_id(gold),
                "answer2_id": answer_id(answer),
                "category": name,
                "content": text,
                "tuple": list(reversed(scores) if swapped else scores),
                "judge": model,
            }

        return Job((key,), work)

    return [job(n, key) for n, key in enumerate(bench.questions, 1) if key in bench.answers]


def _reviewed(
    judge: Judge, content: str, temperature: float, max_tokens: int
) -> tuple[tuple[float, float], str, str]:
    """The scores, the review and who wrote it; a review that cannot be read is asked for again."""
    for _ in range(TRIES):
        reply = judge.ask(prompts.review_messages(content), temperature, max_tokens)
        scores = readable(reply.text)
        if scores != FAILED:
            break
    return scores, reply.text.strip(), reply.model


def answer_id(row: Row) -> Any:
    """An answer's id; upstream crashes on a row without one, which reference rows are."""
    return row.data.get("answer_id", row.data["question_id"])


def check_reviews(journal: Journal, bench: Bench) -> None:
    """Reviews in a journal must be of these very answers."""
    for row in journal.rows:
        key = canonical(row.get("question_id"))
        if key not in bench.questions:
            raise DataError(f"{journal.path}: a review of unknown question {key!r}", "remove it")
        known = (answer_id(bench.answers[key]) if key in bench.answers else None,)
        if (row.get("answer2_id"),) != known:
            raise DataError(
                f"{journal.path}: the review of question {key!r} is of another answer",
                "name another folder with -o",
            )


def position_bias(reviews: Sequence[Row], swapped: Sequence[Row]) -> dict[str, float]:
    """How much the first place is worth: mean score of first minus second over both orders."""
    pairs = {row_id(row, "question_id"): row.data["tuple"] for row in reviews}
    gaps, flips, both = [], 0, 0
    for row in swapped:
        one, other = pairs.get(row_id(row, "question_id")), row.data["tuple"]
        if one is None or min(*one, *other) < 0:
            continue
        both += 1
        # Tuples are (reference, candidate); the reference stood first, then second.
        gaps.append(((one[0] - one[1]) + (other[1] - other[0])) / 2)
        flips += (one[0] > one[1]) - (one[0] < one[1]) != (other[0] > other[1]) - (
            other[0] < other[1]
        )
    if not both:
        return {}
    return {
        "position_bias": math.fsum(gaps) / both,
        "verdicts_changed_by_order": 100.0 * flips / both,
    }


def grade_jobs(
    gold: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, str],
    judge: Judge,
    head: str,
    run: int,
    max_tokens: int,
) -> list[Job]:
    """A grade for every answered item of MM-Vet."""

    def job(name: str) -> Job:
        item = gold[name]
        request = prompts.mmvet_messages(
            head, str(item.get("question", "")), str(item.get("answer", "")), answers[name]
        )

        def work() -> dict[str, Any]:
            score, text, model = _graded(judge, request, max_tokens)
            return {"id": name, "run": run, "model": model, "content": text, "score": score}

        return Job((name, run), work)

    return [job(name) for name in gold if name in answers]


def _graded(judge: Judge, request: Any, max_tokens: int) -> tuple[float, str, str]:
    for number in range(GRADE_TRIES):
        reply = judge.ask(request, 0.5 * number, max_tokens)
        grade = read_grade(reply.text)
        if grade is not None:
            return grade, reply.text.strip(), reply.model
    return 0.0, reply.text.strip(), reply.model


def write_grades(journal: Journal, path: Path) -> None:
    """The organisers' grade file: one list entry a run."""
    grades: dict[str, dict[str, list[Any]]] = {}
    for row in sorted(journal.rows, key=lambda row: int(row["run"])):
        entry = grades.setdefault(row["id"], {"model": [], "content": [], "score": []})
        for name, found in entry.items():
            found.append(row[name])
    put(path, json.dumps(grades, ensure_ascii=False, indent=4) + "\n")
