"""What judges are asked: our wording, or the wording of a rule file.

Published figures used upstream's own wording, so that a rule file may replace ours; the report
names the digest of what was used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError
from llava_cli.evals.judge import Message
from llava_cli.evals.rows import read_object

SYSTEM = "You check the quality of answers, helpfully and with precision."
REFERENCE_SYSTEM = (
    "You see a picture only through the words below: captions, and boxes [x1, y1, x2, y2] in "
    "fractions of its width and height where they are given. Answer the question as if you saw the "
    "picture itself; do not mention the captions or the boxes."
)
_SEEN = {
    "coco": "five sentences about it and the boxes of its objects, [x1, y1, x2, y2] from the top "
    "left corner to the bottom right one, in fractions of width and height",
    "wild": "a few sentences that describe it",
}
_RULE = (
    "Two assistants have answered the question above, which a user asked while looking at a "
    "picture. Here the picture is represented by {seen}. Rate each answer for helpfulness, "
    "relevance, accuracy and level of detail with one overall score from 1 to 10; higher is "
    "better.\nWrite on the first line nothing but the two scores, that of Assistant 1 first, with "
    "one space between them. Explain your scores from the second line on. Do not favour an answer "
    "because of the place at which it stands."
)
CATEGORIES = ("conv", "detail", "complex")


def default_rules() -> dict[str, dict[str, str]]:
    """Our rules in the form of a rule file."""
    coco = {"role": "Assistant", "prompt": _RULE.format(seen=_SEEN["coco"])}
    wild = {"role": "Assistant", "prompt": _RULE.format(seen=_SEEN["wild"])}
    return {**dict.fromkeys(CATEGORIES, coco), **{f"llava_bench_{c}": wild for c in CATEGORIES}}


def rules(path: Path | None) -> dict[str, dict[str, str]]:
    """The rules of a file: category to role and prompt."""
    if path is None:
        return default_rules()
    found = read_object(path)
    for name, rule in found.items():
        texts = [rule.get(k) for k in ("role", "prompt")] if isinstance(rule, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{path}: {name} has no role and prompt", "category to {role, prompt}, as upstream"
            )
    return found


def digest(value: Any) -> str:
    """Identity of a wording."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_coco(context: Mapping[str, Any]) -> bool:
    """Whether a context is COCO's (captions and boxes) or In-the-Wild's (one description)."""
    return "captions" in context


def rule_name(context: Mapping[str, Any], category: str) -> str:
    """The rule's key for a question."""
    return category if is_coco(context) else f"llava_bench_{category}"


def context_text(context: Mapping[str, Any]) -> str:
    """The picture in words."""
    captions = context.get("captions", context.get("caption"))
    lines = [captions] if isinstance(captions, str) else [str(text) for text in captions or []]
    text = "\n".join(lines)
    if not is_coco(context):
        return text
    boxes = [f"{one['category']}: {one['bbox']}" for one in context.get("instances", [])]
    return text + "\n\n" + "\n".join(boxes)


def review(context: str, question: str, first: str, second: str, rule: Mapping[str, str]) -> str:
    """The message about two answers, sections in upstream's order."""
    role = rule["role"]
    return (
        f"[Context]\n{context}\n\n[Question]\n{question}\n\n"
        f"[{role} 1]\n{first}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{second}\n\n[End of {role} 2]\n\n"
        f"[System]\n{rule['prompt']}\n\n"
    )


def review_messages(content: str) -> list[Message]:
    """A review's request."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def reference_messages(context: str, question: str) -> list[Message]:
    """The request for a reference answer from words alone."""
    content = f"{context}\n\n{question}"
    return [{"role": "system", "content": REFERENCE_SYSTEM}, {"role": "user", "content": content}]


_MMVET_HEAD = (
    "Grade how right a prediction is, given the ground truth. Where the ground truth holds <AND>, "
    "the prediction is wholly right only if it has all the parts; where it holds <OR>, one of the "
    "parts is enough. The grade is one of 0.0 (wholly wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, "
    "0.8, 0.9, 1.0 (wholly right). Reply with the last cell of the last row, one number, and "
    "nothing else."
)
_MMVET_ROWS = (
    ("Which numbers solve it?", "2 <AND> -7", "It is 4.", "0.0"),
    ("Which numbers solve it?", "2 <AND> -7", "It is 2.", "0.5"),
    ("Which numbers solve it?", "2 <AND> -7", "It is -7 or 7.", "0.5"),
    ("Which numbers solve it?", "2 <AND> -7", "It is 2 or -7.", "1.0"),
    ("What is the animal?", "fox <OR> red fox", "A fox in the snow.", "1.0"),
    (
        "Why is the sign funny?",
        "The sign forbids reading signs, so that one has broken its rule once one knows it.",
        "It is a sign with odd words on it.",
        "0.1",
    ),
    (
        "Why is the sign funny?",
        "The sign forbids reading signs, so that one has broken its rule once one knows it.",
        "Whoever learns that signs must not be read has just read one.",
        "1.0",
    ),
)


def mmvet_default() -> str:
    """Our table of worked rows."""
    rows = [("Question", "Ground truth", "Prediction", "Correctness"), ("---",) * 4, *_MMVET_ROWS]
    return "\n".join([_MMVET_HEAD, "", *(" | ".join(row) for row in rows)]) + "\n"


def mmvet_messages(head: str, question: str, gold: str, said: str) -> list[Message]:
    """The request to grade one item: the table with its last cell open."""
    gold = gold.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    row = " | ".join([question, " ".join(gold.split()), said, ""])
    return [{"role": "user", "content": f"{head}\n{row}"}]
