"""Published numbers, as data: what `report` puts ours beside.

Sources: the LLaVA-1.5 paper and model zoo (full fine-tune and LoRA), the LLaVA-1.6 model zoo. A
judge's scores are comparable only with the same version of the judge.
"""

from __future__ import annotations

_NAMES = (
    "vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope", "mme", "mmbench", "mmbench-cn",
    "seed", "llava-bench", "mm-vet",
)  # fmt: skip
_TABLE = {
    "llava-1.5-7b": "78.5 62.0 50.0 66.8 58.2 85.9 1510.7 64.3 58.3 58.6 65.4 31.1",
    "llava-1.5-13b": "80.0 63.3 53.6 71.6 61.3 85.9 1531.3 67.7 63.6 61.6 72.5 36.1",
    "llava-1.5-7b-lora": "79.1 63.0 47.8 68.4 58.2 86.4 1476.9 66.1 58.9 60.1 67.9 30.2",
    "llava-1.5-13b-lora": "80.0 63.3 58.9 71.2 60.2 86.7 1541.7 68.5 61.5 61.3 69.5 38.3",
    "llava-1.6-vicuna-7b": "81.8 64.2 57.6 70.1 64.9 86.5 1519 67.4 60.6 - 81.6 43.9",
    "llava-1.6-vicuna-13b": "82.8 65.4 60.5 73.6 67.1 86.2 1575 70 64.4 - 87.3 48.4",
    "llava-1.6-mistral-7b": "82.2 64.8 60.0 72.8 65.7 86.7 1498 68.7 61.2 - 83.2 47.3",
    "llava-1.6-34b": "83.7 67.1 63.8 81.8 69.5 87.7 1631 79.3 79 - 89.6 57.4",
}
PUBLISHED: dict[str, dict[str, float]] = {
    model: {
        name: float(text) for name, text in zip(_NAMES, row.split(), strict=True) if text != "-"
    }
    for model, row in _TABLE.items()
}
"""Model to benchmark to number. LLaVA-1.6 published SEED-Bench for pictures alone: not here."""
PUBLISHED["pica-base"] = {"okvqa": 43.3}
PUBLISHED["pica-full"] = {"okvqa": 48.0}
PUBLISHED["promptcap"] = {"okvqa": 60.4}
PUBLISHED["magic"] = {"coco-caption": 49.3}
PUBLISHED["blip-2"] = {"llava-bench": 38.1}
PUBLISHED["openflamingo"] = {"llava-bench": 19.1}
PUBLISHED["llava-13b"] = {"llava-bench": 67.3}

SCIENCEQA_COLUMNS = ("nat", "soc", "lan", "txt", "img", "no", "g1_6", "g7_12", "avg")
_SCIENCEQA = {
    "random": "40.28 46.13 29.25 47.45 40.08 33.66 39.35 40.67 39.83",
    "human": "90.23 84.97 87.48 89.60 87.50 88.10 91.59 82.42 88.40",
    "gpt-3": "74.64 69.74 76.00 74.44 67.28 77.42 76.80 68.89 73.97",
    "gpt-3-cot": "75.44 70.87 78.09 74.68 67.43 79.93 78.23 69.68 75.17",
    "llama-adapter": "84.37 88.30 84.36 83.72 80.32 86.90 85.83 84.05 85.19",
    "llava-13b": "90.36 95.95 88.00 89.49 88.00 90.66 90.93 90.90 90.92",
    "llava-13b-complement": "90.36 95.50 88.55 89.05 87.80 91.08 92.22 88.73 90.97",
    "llava-13b-judge": "91.56 96.74 91.09 90.62 88.99 93.52 92.73 92.16 92.53",
}
SCIENCEQA: dict[str, dict[str, float]] = {
    model: dict(zip(SCIENCEQA_COLUMNS, map(float, row.split()), strict=True))
    for model, row in _SCIENCEQA.items()
}
"""The nine columns of the fine-tuned models."""
MAXIMUM = {"mme": 2000.0}
"""Of a figure that is no percentage."""
JUDGES = {"llava-bench": "gpt-4-0314", "mm-vet": "gpt-4-0613"}
"""Who judged the published answers."""
