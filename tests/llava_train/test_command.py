"""`llava train`: options, documents and exit codes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llava_cli.cli import main
from llava_train.loop import Result


@dataclass(frozen=True)
class Command:
    """A stage 1 that can be run."""

    capture: pytest.CaptureFixture[str]
    places: list[str]
    data: list[str]
    output: Path

    def __call__(self, *more: str, stage: str = "stage1") -> tuple[int, str, str]:
        recipe = ["--recipe", f"demo-{stage}", "--set", "batch=5", "--set", "precision=float32"]
        code = main(
            ["train", stage, *self.places, *self.data, "-o", str(self.output), *recipe, *more]
        )
        out, err = self.capture.readouterr()
        return code, out, err


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str],
    language_model: Path,
    vision_tower: Path,
    pairs: Path,
    pictures: Path,
    tmp_path: Path,
) -> Command:
    capsys.readouterr()
    places = ["--model", str(language_model), "--vision-tower", str(vision_tower)]
    return Command(
        capsys, places, ["--data", str(pairs), "--images", str(pictures)], tmp_path / "run"
    )


def test_a_run_leaves_a_model_a_log_and_one_document(command: Command) -> None:
    code, out, _ = command("--max-steps", "1", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["model"] == str(command.output / "model")
    assert (document["steps"], document["total_steps"]) == (1, 2)
    line = json.loads((command.output / "log.jsonl").read_text())
    assert line["step"] == 1 and document["loss"] == line["loss"]
    assert (command.output / "model" / "config.json").is_file()

    code, out, err = command()  # the same again goes on
    assert (code, out) == (0, f"{command.output / 'model'}\n")
    assert "after step 1" in err
    assert len((command.output / "log.jsonl").read_text().splitlines()) == 2


def test_plan_and_preview_train_nothing(command: Command) -> None:
    code, out, _ = command("--plan", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["modules"]["connector"]["trained"] > 0
    assert set(plan["estimates"]) == {"flops", "seconds", "memory_bytes"}
    code, out, _ = command("--preview-labels", "1")
    assert code == 0 and "loss" in out and "pair-0" in out
    assert not command.output.exists()


def test_lora_takes_a_recipe_of_stage_2_and_leaves_an_adapter_and_a_page(
    command: Command, talks: Path
) -> None:
    assert command("--max-steps", "1")[0] == 0
    tuned = command.output.parent / "tuned"
    code = main(
        ["train", "lora", "--from", str(command.output), "--data", str(talks), *command.data[2:],
         "-o", str(tuned), "--recipe", "demo-stage2", "--set", "precision=float32",
         "--set", "lora_rank=2", "--set", "steps=2", "--set", "batch=4", "-v"]
    )  # fmt: skip
    out, err = command.capture.readouterr()
    assert (code, out) == (0, f"{tuned / 'model'}\n"), err
    assert "step 2/2" in err and "pos/s" in err
    assert (tuned / "adapter" / "adapter_config.json").is_file()
    assert main(["train", "report", str(tuned)]) == 0
    assert command.capture.readouterr().out == f"{tuned / 'report.html'}\n"
    assert main(["train", "report", str(command.places[1])]) == 2


def test_scienceqa_answers_are_ordered_as_asked(command: Command, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Q\n<image>"},
             {"from": "gpt", "value": "it is The answer is B."}]  # fmt: skip
    path = tmp_path / "scienceqa.json"
    path.write_text(json.dumps([{"id": "1", "image": "0.png", "conversations": turns}]))
    command.data[1] = str(path)
    arguments = ["--recipe", "demo-stage2", "--preview-labels", "1", "--order", "answer-first"]
    places = [*command.places, *command.data, "-o", str(command.output)]
    assert main(["train", "scienceqa", *places, *arguments, "--json"]) == 0
    (shown,) = json.loads(command.capture.readouterr().out)["samples"]
    borne = "".join(token["text"] for token in shown["tokens"] if token["loss"])
    assert borne.replace("Ġ", " ") == " The answer is B. BECAUSE: it is</s>"


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--set", "bach=3"), 2, "did you mean batch"),
        (("--set", "batch=x"), 2, "whole number"),
        (("--recipe", "demo-stage2"), 2, "is for stage2"),
        (("--recipe", "demo-stag1"), 2, "demo-stage1"),
        (("--from", "nowhere"), 2, "either --model or --from"),
        (("--vision-tower", "nowhere"), 3, "no model folder nowhere"),
        (("--resume", "7"), 2, "no checkpoint of step 7"),
        (("--max-steps", "0"), 2, "max-steps"),
    ],
)
def test_what_cannot_be_run_says_why(
    command: Command, more: tuple[str, ...], code: int, message: str
) -> None:
    got, out, err = command(*more)
    assert (got, out) == (code, "")
    assert message in err.lower() and "Traceback" not in err


def test_a_sample_that_teaches_nothing_ends_with_its_name(command: Command, tmp_path: Path) -> None:
    data = [
        {
            "id": "sample-9",
            "image": "0.png",
            "conversations": [
                {"from": "human", "value": "<image>"},
                {"from": "gpt", "value": ""},
            ],
        }
    ]
    path = tmp_path / "empty.json"
    path.write_text(json.dumps(data))
    code, out, err = command("--data", str(path), "--json")
    assert (code, out) == (1, "")
    error = json.loads(err)["error"]
    assert error["type"] == "DataError" and "sample-9" in error["message"]


def test_a_stopped_run_exits_as_shells_expect(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(recipe: Any, *, output: Path, **rest: Any) -> Result:
        return Result(output, 3, 9, 1.5, interrupted=True)

    monkeypatch.setattr("llava_train.loop.train", stopped)
    code, out, err = command("--json")
    assert code == 143
    assert json.loads(out)["interrupted"] is True and json.loads(out)["model"] is None
    assert "step 3 of 9" in err
