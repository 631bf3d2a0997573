"""The adapter for lmms-eval, against a stand-in for that harness's few names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image as PIL

from llava_cli.engines.base import Sampling
from llava_cli.errors import UsageError
from tests.llava_cli.cli.fake_llava import FakeEngine, fake_files


class Base:
    """lmms-eval's base class, as far as it matters."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.partial: list[Any] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *args: self.partial.append(args))


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from llava_cli import engines, models

    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models",
             "lmms_eval.models.registry_v2")  # fmt: skip
    found = {name: ModuleType(name) for name in names}
    found["lmms_eval.api.model"].lmms = Base  # type: ignore[attr-defined]
    found["lmms_eval.models.registry_v2"].ModelManifest = Manifest  # type: ignore[attr-defined]
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(models, "resolve", lambda reference, **_: fake_files(reference))
    monkeypatch.setattr(engines, "load", lambda files, **_: FakeEngine(files, [" yes", " it is"]))
    monkeypatch.delitem(sys.modules, "llava_cli.evals.lmms", raising=False)
    yield importlib.import_module("llava_cli.evals.lmms")
    sys.modules.pop("llava_cli.evals.lmms", None)


def request(text: str, doc: int, **settings: Any) -> Any:
    def visual(document: Any) -> list[PIL.Image]:
        return [PIL.new("RGB", (4, 4), document["color"])]

    return SimpleNamespace(args=(text, settings, visual, doc, "task", "test"))


def test_requests_are_answered_in_their_order(adapter: Any) -> None:
    model = adapter.LlavaCli(model="x", batch_size="2")
    model.task_dict = {"task": {"test": [{"color": "red"}, {"color": "blue"}]}}
    requests = [
        request("<image>\nIs it?", 0, max_new_tokens=16, until=["\n\n", "###"]),
        request("Is it not?", 1, max_new_tokens=16, until="###"),
        request("Is it?", 1, max_new_tokens=16, until=["\n\n", "###"]),
    ]
    assert model.generate_until(requests) == ["yes it is"] * 3
    assert len(model.partial) == 3
    asked = {c.messages[0].text: (c, s) for c, s in model._engine.asked}
    conversation, sampling = asked["Is it not?"]
    assert sampling == Sampling(max_tokens=16, stop=("###",))
    assert conversation.images[0].open().getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(UsageError, match="likelihoods"):
        model.loglikelihood([])


def test_sampling_is_greedy_unless_a_task_samples(adapter: Any) -> None:
    assert adapter.sampling_of({}) == Sampling(max_tokens=1024)
    assert adapter.sampling_of({"temperature": 0.7, "do_sample": False}).temperature == 0
    assert adapter.sampling_of({"temperature": 0.7, "top_p": 0.9}).top_p == 0.9


def test_the_entry_point_names_a_class_that_is_there(adapter: Any) -> None:
    path = adapter.manifest().simple_class_path
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is adapter.LlavaCli
    text = (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'llava_cli = "llava_cli.evals.lmms:manifest"' in text
