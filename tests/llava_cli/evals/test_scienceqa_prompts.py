"""ScienceQA's prompt formats by hand, their crossed names included."""

from __future__ import annotations

import pytest

from llava_cli.errors import UsageError
from llava_cli.evals import scienceqa_prompts as prompts

PROBLEM = {
    "question": "Which  one?", "choices": ["x", "y"], "answer": 1, "hint": "See  it.",
    "lecture": "L1\nL2", "solution": "S",
}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("QCM", "Which one?\nContext: See it.\nOptions: (A) x (B) y"),
        ("CQM", "Context: See it.\nQuestion: Which one?\nOptions: (A) x (B) y"),
        ("QCML", "Which one?\nContext: See it.\nOptions: (A) x (B) y\nBECAUSE: L1\\nL2"),
        ("QCME", "Which one?\nContext: See it.\nOptions: (A) x (B) y\nBECAUSE: S"),
        ("QCMLE", "Which one?\nContext: See it.\nOptions: (A) x (B) y\nBECAUSE: L1\\nL2 S"),
        ("QCLM", "Which one?\nContext: See it.\nBECAUSE: L1\\nL2\nOptions: (A) x (B) y"),
        ("QCEM", "Which one?\nContext: See it.\nBECAUSE: S\nOptions: (A) x (B) y"),
        ("QCLEM", "Which one?\nContext: See it.\nBECAUSE: L1\\nL2 S\nOptions: (A) x (B) y"),
    ],
)
def test_inputs(form: str, text: str) -> None:
    assert prompts.question(PROBLEM, form) == text


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("A", "The answer is B."),
        ("AL", "The answer is B. BECAUSE: S"),
        ("AE", "The answer is B. BECAUSE: L1\\nL2"),
        ("ALE", "The answer is B. BECAUSE: L1\\nL2 S"),
        ("AEL", "The answer is B. BECAUSE: S L1\\nL2"),
        ("LA", "L1\\nL2 The answer is B."),
        ("EA", "S The answer is B."),
        ("LEA", "L1\\nL2 S The answer is B."),
        ("ELA", "S L1\\nL2 The answer is B."),
        ("LEPA", "LECTURE: L1\\nL2\nSOLUTION: S\n###\nANSWER: B."),
    ],
)
def test_outputs(form: str, text: str) -> None:
    assert prompts.answer(PROBLEM, form) == text


def test_empty_parts() -> None:
    bare = {**PROBLEM, "hint": "", "lecture": "", "solution": ""}
    assert prompts.question(bare, "QCM") == "Which one?\nContext: N/A\nOptions: (A) x (B) y"
    assert prompts.question(bare, "QCME") == "Which one?\nContext: N/A\nOptions: (A) x (B) y"
    assert prompts.answer(bare, "AL") == "The answer is B."
    assert prompts.answer(bare, "LEPA") == "###\nANSWER: B."
    assert prompts.zero_shot(bare) == "Which  one?\nA. x\nB. y"
    with pytest.raises(UsageError, match="unknown format"):
        prompts.check_style("QCX-A")
