"""From a benchmark's name and a folder to what is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llava_cli.errors import DataError, UsageError
from llava_cli.evals import plans_letters, plans_words
from llava_cli.evals.tasks import CHOICE, CHOICE_CN, SHORT, UNANSWERABLE, Asking, Plan, ready_made

_PLANS: dict[str, Callable[[Asking], Plan]] = {
    "vqav2": plans_words.vqav2,
    "gqa": plans_words.gqa_plan,
    "vizwiz": plans_words.vizwiz,
    "textvqa": plans_words.textvqa,
    "pope": plans_words.pope_plan,
    "mme": plans_words.mme_plan,
    "mmbench": plans_letters.mmbench_en,
    "mmbench-cn": plans_letters.mmbench_cn,
    "seed": plans_letters.seed_plan,
    "scienceqa": plans_letters.scienceqa_plan,
    "llava-bench": plans_words.llava_bench,
    "mm-vet": plans_words.mm_vet,
    "owleval": plans_words.owleval,
    "okvqa": plans_words.vqav2,
    "coco-caption": plans_words.coco_caption,
    "scenes": plans_words.scenes_plan,
}
SUFFIXES = {
    **dict.fromkeys(("vqav2", "gqa", "textvqa", "pope", "mme", "okvqa"), SHORT),
    "vizwiz": UNANSWERABLE,
    **dict.fromkeys(("mmbench", "seed", "scienceqa"), CHOICE),
    "mmbench-cn": CHOICE_CN,
}
"""What follows a question by default."""
BRIEF = ("vqav2", "gqa", "vizwiz", "textvqa", "pope", "mme", "okvqa", "seed")
"""Benchmarks that LLaVA answers with at most 128 new tokens; the others with 1,024."""


def max_tokens(name: str) -> int:
    """LLaVA's bound on an answer."""
    return 128 if name in BRIEF else 1024


def plan(name: str, asking: Asking) -> Plan:
    """Everything that is asked, checked: every file and every picture is there."""
    if not asking.data.is_dir():
        raise UsageError(f"{asking.data}: is no folder", "--data names the benchmark's folder")
    if asking.questions is not None:
        found = Plan(list(ready_made(asking)))
        try:
            gold = _PLANS[name](asking)
        except DataError:  # LLaVA's question files need not have the organisers' beside them
            return found
        return replace(gold, tasks=found.tasks)
    found = _PLANS[name](asking)
    if not found.tasks:
        raise DataError(f"{asking.data}: holds no questions of {name}", "see llava eval ls")
    return found
