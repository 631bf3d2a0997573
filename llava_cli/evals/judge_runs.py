"""The two judged benchmarks from files to results: what is read, asked, kept and scored."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from llava_cli.errors import DataError, UsageError
from llava_cli.evals import judge_prompts as prompts
from llava_cli.evals import judging, mmvet, results, scorer
from llava_cli.evals.judge import Endpoint, Judge
from llava_cli.evals.judging import Bench, Job, Outcome
from llava_cli.evals.llavabench import FAILED
from llava_cli.evals.rows import (
    canonical,
    first_character,
    is_json_lines,
    read_object,
    read_rows,
    read_text,
    row_id,
    row_text,
)
from llava_cli.evals.scoring import Inputs, Result, score
from llava_cli.evals.tasks import maybe_file, one_file

QUESTIONS = ("questions.jsonl", "qa90_questions.jsonl", "*question*.jsonl")
CONTEXTS = ("context.jsonl", "caps_boxes_*.jsonl", "*context*.jsonl")
REFERENCES = ("answers_gpt4.jsonl", "*answer*gpt4*.jsonl", "*gpt4*answer*.jsonl")


@dataclass(frozen=True)
class Settings:
    """One call of `llava eval judge`."""

    endpoint: Endpoint
    predictions: Path
    data: Path
    output: Path
    references: Path | None = None
    make_references: bool = False
    rule: Path | None = None
    runs: int = 3
    swap: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    workers: int = 4
    retry_failed: bool = False

    def protocol(self, wording: str, temperature: float | str) -> dict[str, Any]:
        """What makes the scores comparable, or not; the date is added when the result is made."""
        return {
            "judge": self.endpoint.model,
            "temperature": temperature,
            "rule": wording,
            "rule_file": self.rule.name if self.rule else "ours",
        }


Work = Callable[[Judge], Outcome]


def llava_bench(settings: Settings) -> Work:
    """Check everything; give what asks the judge."""
    questions = one_file(settings.data, *QUESTIONS)
    contexts = one_file(settings.data, *CONTEXTS)
    references = settings.references or maybe_file(settings.data, *REFERENCES)
    if settings.make_references:
        references = None
    elif references is None:
        raise UsageError(
            f"{settings.data}: holds no reference answers (answers_gpt4.jsonl)",
            "give them with --references, or let the judge write some: --make-references",
        )
    bench = Bench.read(questions, contexts, settings.predictions, references)
    if not set(bench.questions) & set(bench.answers):
        raise DataError(
            f"{settings.predictions}: no answer to any question of {questions}", "wrong file?"
        )
    rules = prompts.rules(settings.rule)
    temperature = 0.2 if settings.temperature is None else settings.temperature
    _record(settings, settings.protocol(prompts.digest(rules), temperature))

    def work(judge: Judge) -> Outcome:
        asked, total = bench, Outcome()
        if settings.make_references:
            asked = replace(bench, references=_references(settings, bench, judge, total))
        for name, swapped in _files(settings):
            missing = [
                k for k in asked.questions if k in asked.answers and k not in asked.references
            ]
            answers = {k: v for k, v in asked.answers.items() if k not in missing}
            usable = replace(asked, answers=answers)
            jobs = judging.review_jobs(
                usable, judge, rules, swapped=swapped, temperature=temperature,
                max_tokens=settings.max_tokens or 1024,
            )  # fmt: skip
            path = settings.output / name
            _run(settings, path, jobs, usable, total)
            if total.left:
                break
        return total

    return work


def _files(settings: Settings) -> list[tuple[str, bool]]:
    names = [(f"reviews-{n}.jsonl", False) for n in range(1, settings.runs + 1)]
    if settings.swap:
        names += [(f"swapped-{n}.jsonl", True) for n in range(1, settings.runs + 1)]
    return names


def _run(settings: Settings, path: Path, jobs: list[Job], bench: Bench, total: Outcome) -> None:
    def unreadable(row: Mapping[str, Any]) -> bool:
        return tuple(row.get("tuple", ())) == FAILED

    journal = judging.open_journal(path, without=unreadable if settings.retry_failed else None)
    try:
        judging.check_reviews(journal, bench)
        outcome = judging.work_off(jobs, journal, _question_of, settings.workers)
    finally:
        journal.close()
    _sort(journal.path, key="id")
    _add(total, outcome)


def _question_of(row: Mapping[str, Any]) -> tuple[Any]:
    return (canonical(row.get("question_id")),)


def _add(total: Outcome, outcome: Outcome) -> None:
    total.done += outcome.done
    total.kept += outcome.kept
    total.left += outcome.left
    total.failures += outcome.failures


def _sort(path: Path, key: str) -> None:
    """Rows in the order of the questions: upstream's scripts read them so."""
    import json

    from llava_cli.evals.uploads import put

    rows = [dict(row.data) for row in read_rows(path)]
    ordered = sorted(rows, key=lambda row: row[key])
    if ordered != rows:
        put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered))


def _references(settings: Settings, bench: Bench, judge: Judge, total: Outcome) -> Any:
    journal = judging.open_journal(settings.output / "references.jsonl", without=None)
    try:
        jobs = judging.reference_jobs(bench, judge)
        outcome = judging.work_off(jobs, journal, _question_of, settings.workers)
    finally:
        journal.close()
    _add(total, outcome)
    return judging.rows_by_id(journal.path, "text")


def mm_vet(settings: Settings) -> Work:
    """Check everything; give what asks the judge."""
    gold = mmvet.gold_of(Inputs((), (one_file(settings.data, "mm-vet.json"),)))
    answers = _mmvet_answers(settings.predictions)
    if not set(gold) & set(answers):
        raise DataError(f"{settings.predictions}: no answer to any item of mm-vet.json", "v1_N?")
    head = read_text(settings.rule) if settings.rule else prompts.mmvet_default()
    _record(settings, settings.protocol(prompts.digest(head), "0, +0.5 a try"))

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["id"], row["run"]

    def unreadable(row: Mapping[str, Any]) -> bool:
        return mmvet.read_grade(str(row.get("content"))) is None

    def work(judge: Judge) -> Outcome:
        without = unreadable if settings.retry_failed else None
        journal = judging.open_journal(
            settings.output / "journal" / "grades.jsonl", without=without
        )
        jobs = [
            job
            for run in range(1, settings.runs + 1)
            for job in judging.grade_jobs(
                gold, answers, judge, head, run, settings.max_tokens or 16
            )
        ]  # fmt: skip
        try:
            outcome = judging.work_off(jobs, journal, key, settings.workers)
        finally:
            journal.close()
        judging.write_grades(journal, settings.output / "grades.json")
        return outcome

    return work


def _mmvet_answers(path: Path) -> dict[str, str]:
    """Name to answer: the organisers' object, or LLaVA's rows."""
    if first_character(path) == "{" and not is_json_lines(path):
        found = read_object(path)
        bad = next((name for name, text in found.items() if not isinstance(text, str)), None)
        if bad is not None:
            raise DataError(f"{path}: the answer of {bad} is no text", "name to answer")
        return found
    return {
        mmvet.name_of(row_id(row, "question_id")): row_text(row, "text") for row in read_rows(path)
    }


def _record(settings: Settings, protocol: dict[str, Any]) -> None:
    """Keep the protocol; refuse to mix judges or wordings in one folder."""
    path = settings.output / "protocol.json"
    if path.exists():
        before = read_object(path)
        other = [name for name, value in protocol.items() if before.get(name) != value]
        if other:
            raise UsageError(
                f"{settings.output}: holds judgements made with another {', '.join(other)}",
                "name another folder with -o",
            )
        return
    results.save(protocol, path)


def result(benchmark: str, settings: Settings) -> Result | None:
    """Score what is judged; None where nothing is."""
    if benchmark == "llava-bench":
        files = [settings.output / name for name, swapped in _files(settings) if not swapped]
        files = [path for path in files if path.exists() and path.stat().st_size]
        gold = one_file(settings.data, *QUESTIONS)
    else:
        files = [settings.output / "grades.json"]
        gold = one_file(settings.data, "mm-vet.json")
        files = [path for path in files if path.exists() and read_object(path)]
    if not files:
        return None
    found = score(benchmark, scorer(benchmark), Inputs(tuple(files), (gold,)))
    protocol = {
        **found.protocol,
        **_judged_by(settings, files),
        "scored_by": found.protocol["rule"],
    }
    metrics = {**found.metrics, **_swap(settings)}
    found = replace(found, metrics=metrics, protocol=protocol)
    results.save(found.document(), settings.output / "score.json")
    return found


def _judged_by(settings: Settings, files: list[Path]) -> dict[str, Any]:
    """The protocol of the judgements, with the judges' own names for themselves."""
    kept = read_object(settings.output / "protocol.json")
    names: set[str] = set()
    for path in files:
        if path.suffix == ".jsonl":
            names |= {str(row.data.get("judge")) for row in read_rows(path)}
        else:
            names |= {str(m) for entry in read_object(path).values() for m in entry["model"]}
    stamp = max(path.stat().st_mtime for path in files)
    date = datetime.datetime.fromtimestamp(stamp, datetime.timezone.utc).date().isoformat()
    return {
        "judge": kept["judge"],
        "judge_models": sorted(names),
        "judge_temperature": kept["temperature"],
        "judge_rule": kept["rule"],
        "judge_rule_file": kept["rule_file"],
        "judge_date": date,
    }


def _swap(settings: Settings) -> dict[str, float]:
    if not settings.swap:
        return {}
    found: dict[str, list[float]] = {}
    for n in range(1, settings.runs + 1):
        one, other = (settings.output / f"{name}-{n}.jsonl" for name in ("reviews", "swapped"))
        if one.exists() and other.exists():
            bias = judging.position_bias(list(read_rows(one)), list(read_rows(other)))
            for name, value in bias.items():
                found.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in found.items()}
