"""VQAv2, VizWiz and OK-VQA: ten references an item, soft accuracy.

`accuracy` is the figure that is published: for VQAv2 and VizWiz answers and references in the
EvalAI processor's form, for OK-VQA the organisers' evaluation after PICa's cleaning. VQAv2 and
OK-VQA print the other one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_cli.evals.normalise import (
    evalai,
    official,
    official_reference,
    pica,
    soft_score,
)
from llava_cli.evals.rows import Row, first_character, read_rows, row_id, row_text
from llava_cli.evals.scoring import (
    Answers,
    Inputs,
    Mean,
    Notes,
    Verdict,
    answer_map,
    find,
    graded,
    leftovers,
    metric_name,
    needed,
    prediction_rows,
)

RULES = {
    "evalai": "EvalAI normaliser on both sides; mean over ten references of min(1, others/3)",
    "official": "organisers' evaluation: prediction processed, references punctuation-cleaned "
    "where they differ; mean over ten references of min(1, others/3)",
}


def evalai_score(prediction: str, references: list[str]) -> float:
    """Soft accuracy, both sides in the EvalAI processor's form."""
    said = evalai(prediction)
    return soft_score([evalai(r) for r in references].count(said), len(references))


def official_score(prediction: str, references: list[str]) -> float:
    """The organisers' evaluation of one answer."""
    said = official(prediction)
    if len(set(references)) > 1:
        references = [official_reference(r) for r in references]
    return soft_score(references.count(said), len(references))


def references_of(row: Row) -> list[str]:
    """The human answers of an annotation: objects with `answer`, or plain texts."""
    answers = row.data.get("answers")
    if not isinstance(answers, list) or not answers:
        raise row.bad("answers is missing or empty", "give annotations with human answers")
    try:
        found = [a["answer"] if isinstance(a, dict) else a for a in answers]
    except KeyError as error:
        raise row.bad("an answer has no text") from error
    if not all(isinstance(a, str) for a in found):
        raise row.bad("an answer is not a text")
    return found


@dataclass(frozen=True)
class Vqa:
    """One of the benchmarks whose annotations have the VQA organisers' form."""

    name: str
    RULE: str
    annotation_names: tuple[str, ...]
    text_names: tuple[str, ...] = ("text", "answer", "prediction")
    id_names: tuple[str, ...] = ("question_id",)
    main: str = "evalai"
    both: bool = True
    """Whether the other rule's figure is printed, too."""
    clean: Callable[[str], str] | None = None
    member: str | None = "annotations"
    MISSING: str = "counted as wrong"

    def verdicts(self, inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
        """One verdict an annotation, in their order."""
        answers = self._answers(inputs, notes)
        first = next(prediction_rows(inputs), None)
        sent = first is not None and "text" not in first.data
        files = find(needed(inputs.annotations, self.annotation_names[0]), *self.annotation_names)
        for path in files:
            for row in read_rows(path, self.member):
                yield self._verdict(row, answers, sent)
        leftovers(answers, notes)

    def _answers(self, inputs: Inputs, notes: Notes) -> Answers:
        def key(row: Row) -> Any:
            return row_id(row, *self.id_names)

        def text(row: Row) -> str:
            return row_text(row, *self.text_names)

        return answer_map(prediction_rows(inputs), key, text, notes)

    def _verdict(self, row: Row, answers: Answers, sent: bool) -> Verdict:
        key = row_id(row, *self.id_names)
        references = references_of(row)
        groups = tuple(metric_name(str(row.data[n])) for n in ("answer_type",) if row.data.get(n))
        answer = answers.pop(key, None)
        if answer is None:
            return Verdict(key, references, None, None, 0.0, "missing", groups, (0.0, 0.0))
        said = self.clean(answer.text) if self.clean else answer.text
        if self.main == "official":
            score = official_score(said, references)
            other = evalai_score(said, references) if self.both else 0.0
            parsed = official(said)
        else:
            score = evalai_score(said, references)
            parsed = evalai(said)
            # The server is sent the processor's form of LLaVA's answers, others' as they are.
            upload = said if sent else parsed
            other = official_score(upload, references) if self.both else 0.0
        return Verdict(key, references, answer.text, parsed, score, graded(score), groups, other)

    def metrics(self, items: Iterable[Verdict]) -> dict[str, float]:
        """`accuracy`, by kind of answer, and the other rule's figure."""
        means = Mean()
        for item in items:
            means.add("accuracy", item.score)
            for group in item.groups:
                means.add(f"accuracy_{group}", item.score)
            if self.both:
                means.add(self._other, item.extra if item.text is not None else 0.0)
        return {"accuracy": means.percent("accuracy"), **means.percents()}

    @property
    def _other(self) -> str:
        return "official_accuracy" if self.main == "evalai" else "evalai_accuracy"


VQAV2 = Vqa("vqav2", RULES["evalai"], ("v2_mscoco_*_annotations.json", "*annotations*.json"))
OKVQA = Vqa(
    "okvqa",
    "PICa's cleaning, then the " + RULES["official"],
    ("mscoco_*_annotations.json", "*annotations*.json"),
    main="official",
    clean=pica,
)


@dataclass(frozen=True)
class VizWiz(Vqa):
    """VizWiz names its items by picture; LLaVA's question files give them that id, too."""

    def _answers(self, inputs: Inputs, notes: Notes) -> Answers:
        names = _image_of_question(inputs.questions)

        def key(row: Row) -> Any:
            if "image" in row.data:
                return row_id(row, "image")
            found = row_id(row, "question_id")
            return names.get(found, found)

        def text(row: Row) -> str:
            return row_text(row, *self.text_names)

        return answer_map(prediction_rows(inputs), key, text, notes)


def _image_of_question(path: Path | None) -> dict[Any, Any]:
    """question_id to picture, from LLaVA's question file."""
    if path is None:
        return {}
    return {row_id(row, "question_id"): row_id(row, "image") for row in read_rows(path)}


VIZWIZ = VizWiz(
    "vizwiz",
    RULES["evalai"],
    ("val.json", "*val*.json", "*.json"),
    id_names=("image", "question_id"),
    both=False,
    member="questions",
)


def has_answers(path: Path) -> bool:
    """Whether a file of annotations holds human answers (test files do not)."""
    member = None if first_character(path) == "[" else "annotations"
    for row in read_rows(path, member):
        return bool(row.data.get("answers"))
    return False
