"""ScienceQA's problems as prompts and answers: LLaVA-1.5's zero-shot form, v1's for fine-tuning.

A format is INPUT-OUTPUT. Q question, C context, M options; L lecture, E solution; A answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_cli.errors import UsageError

LETTERS = "ABCDE"
INPUTS = ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUTS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")
ZERO_SHOT = "CQM-A"
"""LLaVA-1.5's: plain lines instead of labels, and a suffix."""
Problem = Mapping[str, Any]


def check_style(style: str) -> tuple[str, str]:
    """INPUT and OUTPUT of a format."""
    first, _, last = style.partition("-")
    if first not in INPUTS or last not in OUTPUTS:
        raise UsageError(
            f"unknown format: {style}",
            f"INPUT-OUTPUT of {', '.join(INPUTS)} and {', '.join(OUTPUTS)}",
        )
    return first, last


def zero_shot(problem: Problem) -> str:
    """LLaVA-1.5's question, without picture and suffix."""
    hint = str(problem.get("hint") or "")
    options = [f"{LETTERS[i]}. {text}" for i, text in enumerate(problem["choices"])]
    lines = [f"Context: {hint}"] * bool(hint) + [str(problem["question"]), *options]
    return "\n".join(lines)


def question(problem: Problem, form: str) -> str:
    """The question in one of v1's input formats, its leading label removed."""
    hint = str(problem.get("hint") or "").strip() or "N/A"
    options = " ".join(f"({LETTERS[i]}) {text}" for i, text in enumerate(problem["choices"]))
    parts = {
        "Q": f"Question: {problem['question']}",
        "C": f"Context: {hint}",
        "M": f"Options: {options}",
    }
    lecture, solution = _one_line(problem, "lecture"), _one_line(problem, "solution")
    because = {"L": lecture, "E": solution, "LE": f"{lecture} {solution}"}
    lines, rest = [], form
    while rest:
        if rest[0] in parts:
            lines.append(parts[rest[0]])
            rest = rest[1:]
            continue
        reasons = rest.rstrip("M") if rest.endswith("M") else rest
        lines.append(f"BECAUSE: {because[reasons]}")
        rest = rest[len(reasons) :]
    text = _tidy("\n".join(lines))
    return text.replace("Question: ", "") if text.startswith("Question: ") else text


def answer(problem: Problem, form: str) -> str:
    """The answer in one of v1's output formats.

    Two names are crossed, and kept so: AL gives the solution, AE the lecture.
    """
    letter = LETTERS[problem["answer"]]
    lecture, solution = _one_line(problem, "lecture"), _one_line(problem, "solution")
    stated = f"The answer is {letter}."
    texts = {
        "A": stated,
        "AL": f"{stated} BECAUSE: {solution}",
        "AE": f"{stated} BECAUSE: {lecture}",
        "ALE": f"{stated} BECAUSE: {lecture} {solution}",
        "AEL": f"{stated} BECAUSE: {solution} {lecture}",
        "LA": f"{lecture} {stated}",
        "EA": f"{solution} {stated}",
        "LEA": f"{lecture} {solution} {stated}",
        "ELA": f"{solution} {lecture} {stated}",
    }
    if form != "LEPA":
        return _tidy(texts[form])
    lines = [f"LECTURE: {lecture}"] * bool(lecture.strip())
    lines += [f"SOLUTION: {solution}"] * bool(solution.strip())
    return _tidy("\n".join([*lines, "###", f"ANSWER: {letter}."]))


def _one_line(problem: Problem, name: str) -> str:
    r"""Lecture or solution with its newlines as the two characters `\n`."""
    return str(problem.get(name) or "").replace("\n", "\\n")


def _tidy(text: str) -> str:
    """Double blanks collapse once; a reason that is empty takes its label with it."""
    text = text.replace("  ", " ").strip()
    return text.replace("BECAUSE:", "").strip() if text.endswith("BECAUSE:") else text
