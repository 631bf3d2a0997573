"""Benchmarks: what each needs, how its answers are scored, what was published.

`BENCHMARKS` is data; `scorer` imports a benchmark's module when it is named.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llava_cli.errors import UsageError

if TYPE_CHECKING:
    from llava_cli.evals.scoring import Scorer


@dataclass(frozen=True)
class Benchmark:
    """What a person must know to run one."""

    name: str
    title: str
    module: str
    """`module` or `module:attribute` of its scorer."""
    metric: str
    """The one that is published."""
    items: int
    """How many items the published number is of; 0 where that is open."""
    needs: str
    source: str
    upload: bool = False
    """Whether (part of) its gold is on the organisers' server only."""


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark(
            "vqav2", "VQAv2", "vqa:VQAV2", "accuracy", 107394,
            "v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json, the COCO pictures",
            "https://visualqa.org/download.html", upload=True,
        ),
        Benchmark(
            "gqa", "GQA", "gqa", "accuracy", 12578,
            "testdev_balanced_questions.json, images/",
            "https://cs.stanford.edu/people/dorarad/gqa/download.html",
        ),
        Benchmark(
            "vizwiz", "VizWiz", "vqa:VIZWIZ", "accuracy", 8000,
            "val.json or test.json, the pictures",
            "https://vizwiz.org/tasks-and-datasets/vqa/", upload=True,
        ),
        Benchmark(
            "textvqa", "TextVQA", "textvqa", "accuracy", 5000,
            "TextVQA_0.5.1_val.json, TextVQA_Rosetta_OCR_v0.2_val.json, train_images/",
            "https://textvqa.org/dataset/",
        ),
        Benchmark(
            "pope", "POPE", "pope", "f1_mean", 8910,
            "coco_pope_{random,popular,adversarial}.json, COCO val2014 pictures",
            "https://github.com/AoiDragon/POPE",
        ),
        Benchmark(
            "mme", "MME", "mme", "perception", 2374,
            "MME_Benchmark_release_version/",
            "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models",
        ),
        Benchmark(
            "mmbench", "MMBench", "mmbench", "circular_accuracy", 4377,
            "mmbench_dev_20230712.tsv", "https://mmbench.opencompass.org.cn", upload=True,
        ),
        Benchmark(
            "mmbench-cn", "MMBench-CN", "mmbench", "circular_accuracy", 0,
            "mmbench_dev_cn_20231003.tsv", "https://mmbench.opencompass.org.cn", upload=True,
        ),
        Benchmark(
            "seed", "SEED-Bench", "seed", "accuracy", 19242,
            "SEED-Bench.json, SEED-Bench-image/, SEED-Bench-video-image/",
            "https://github.com/AILab-CVC/SEED-Bench", upload=True,
        ),
        Benchmark(
            "scienceqa", "ScienceQA", "scienceqa", "image_accuracy", 4241,
            "problems.json, pid_splits.json, test/ID/image.png",
            "https://github.com/lupantech/ScienceQA",
        ),
        Benchmark(
            "llava-bench", "LLaVA-Bench", "llavabench", "relative_score", 60,
            "questions.jsonl, context.jsonl, answers_gpt4.jsonl, images/",
            "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
        ),
        Benchmark(
            "mm-vet", "MM-Vet", "mmvet", "mean_score", 218,
            "mm-vet.json, images/", "https://github.com/yuweihao/MM-Vet",
        ),
        Benchmark(
            "owleval", "OwlEval", "owleval", "grade_a", 82,
            "questions.jsonl, cases/", "https://github.com/X-PLUG/mPLUG-Owl",
        ),
        Benchmark(
            "okvqa", "OK-VQA", "vqa:OKVQA", "accuracy", 5046,
            "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, pictures",
            "https://okvqa.allenai.org/download.html",
        ),
        Benchmark(
            "coco-caption", "COCO captions", "captions", "cider", 0,
            "captions_val2014.json, the pictures", "https://cocodataset.org/#download",
        ),
        Benchmark(
            "scenes", "drawn scenes", "scenes", "accuracy", 0,
            "the folder that llava data scenes wrote", "llava data scenes -o DIR --n N --seed S",
        ),
    )
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    """A benchmark by its name; UsageError with the nearest one."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1)
    meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(BENCHMARKS)}"
    raise UsageError(f"unknown benchmark: {name}", meant)


def scorer(name: str) -> Scorer:
    """The scorer of a benchmark."""
    module, _, attribute = benchmark(name).module.partition(":")
    found = importlib.import_module(f"llava_cli.evals.{module}")
    return cast("Scorer", getattr(found, attribute) if attribute else found)
