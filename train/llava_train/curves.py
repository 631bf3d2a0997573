"""A run's curves as TensorBoard files, for those who ask for them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava_cli.errors import MissingDependency
from llava_train.runlog import StepLog
from llava_train.validation import ValidationLog


def writer(run: Path) -> Any:
    """A writer into RUN/tensorboard; MissingDependency where there is none."""
    if find_spec("tensorboard") is None:
        raise MissingDependency("--tensorboard needs tensorboard", "pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"))


def step(writer: Any, line: StepLog) -> None:
    """The curves of one step."""
    for name in ("loss", "lr", "grad_norm", "tokens", "data_wait", "mfu"):
        value = getattr(line, name)
        if value is not None:
            writer.add_scalar(name, value, line.step)


def validation(writer: Any, line: ValidationLog) -> None:
    """The loss and the answers of the samples held out."""
    writer.add_scalar("held_out/loss", line.loss, line.step)
    for answer in line.answers:
        text = f"{answer.question} -> {answer.answer} (expected {answer.expected})"
        writer.add_text(answer.sample, text, line.step)
