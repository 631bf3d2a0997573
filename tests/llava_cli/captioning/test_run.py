"""A run of captioning: batches, memory, what one bad picture does to the others."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image as PIL

from llava_cli.captioning.journal import Journal
from llava_cli.captioning.keepers import keeper_of, output_of
from llava_cli.captioning.run import Job, Outcome, Run
from llava_cli.captioning.sources import Sources
from llava_cli.captioning.wording import Template
from llava_cli.conversation import Conversation
from llava_cli.engines.base import Audience, Sampling, Stats, Token
from llava_cli.errors import LlavaError, OutOfMemory
from tests.llava_cli.cli.fake_llava import FakeEngine, fake_files


class Engine(FakeEngine):
    """Answers with a picture's name, remembers sizes of batches, breaks where it is told to."""

    def __init__(self, *, room: int = 100, refuses: str = "") -> None:
        super().__init__(fake_files(None), [])
        self.batches: list[int] = []
        self._room = room
        self._refuses = refuses

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        audience: Audience | None = None,
    ) -> Iterator[tuple[int, Token]]:
        self.batches.append(len(conversations))
        if len(conversations) > self._room:
            raise OutOfMemory("too many", "fewer")
        for index, conversation in enumerate(conversations):
            name = Path(conversation.images[0].source).name
            if name == self._refuses:
                raise LlavaError("the prompt is too long")
            yield index, Token(name)
            yield index, Token("", finish_reason="stop", stats=Stats())


def folder_of(tmp_path: Path, count: int) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    PIL.new("RGB", (30, 30), "red").save(folder / "0000.png")
    for number in range(1, count):
        os.link(folder / "0000.png", folder / f"{number:04}.png")
    return folder


def outcomes(folder: Path, engine: Engine, batch_size: int | None = 8) -> Iterator[Outcome]:
    keeper = keeper_of(output_of("txt", folder, None))
    job = Job(Sources((str(folder),)), Template("what?"), Sampling(), batch_size=batch_size)
    keeper.begin(job.fingerprint(""))
    yield from Run(job, keeper, lambda: engine).outcomes()
    keeper.journal.close(finished=True, all_seen=True)


def test_pictures_are_answered_in_batches(tmp_path: Path) -> None:
    engine = Engine()
    assert {o.kind for o in outcomes(folder_of(tmp_path, 20), engine)} == {"written"}
    assert engine.batches == [8, 8, 4]


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path) -> None:
    engine = Engine(room=3)
    found = list(outcomes(folder_of(tmp_path, 20), engine))
    assert len(found) == len({o.item.relative for o in found}) == 20
    assert {o.kind for o in found} == {"written"}
    assert engine.batches[:3] == [8, 4, 2]


def test_one_picture_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory):
        list(outcomes(folder_of(tmp_path, 2), Engine(room=0)))


def test_one_that_the_engine_refuses_costs_only_itself(tmp_path: Path) -> None:
    found = list(outcomes(folder_of(tmp_path, 12), Engine(refuses="0003.png")))
    assert [o.item.relative for o in found if o.kind == "failed"] == ["0003.png"]
    assert sum(o.kind == "written" for o in found) == 11


def test_large_pictures_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_cli.captioning.run.BATCH_PIXELS", 2 * 30 * 30)
    engine = Engine()
    list(outcomes(folder_of(tmp_path, 9), engine))
    assert engine.batches == [3, 3, 3]


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 240)
    tracemalloc.start()
    try:
        sizes = []
        for number, _ in enumerate(outcomes(folder, Engine())):
            if number in (100, 220):
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 100_000


@pytest.mark.parametrize("format", ["txt", "jsonl"])
def test_of_many_pictures_those_without_a_caption_come_first(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, 300)
    job = Job(Sources((str(folder),)), Template("what?"), Sampling())
    output = output_of(format, folder, None if format == "jsonl" else tmp_path / "captions")
    keeper = keeper_of(output)
    keeper.begin("")
    for item in job.sources.items():
        if item.path.stem not in ("0123", "0299"):
            keeper.store(item, "from before", b"", replace=True)
    keeper.publish(whole=True)
    keeper.journal.close(finished=True, all_seen=True)
    looked: list[str] = []
    claim = Journal.claim

    def claimed(journal: Journal, key: bytes, name: str) -> str | None:
        looked.append(name)
        return claim(journal, key, name)

    monkeypatch.setattr(Journal, "claim", claimed)
    keeper = keeper_of(output)
    keeper.begin("")
    found = Run(job, keeper, lambda: Engine()).outcomes()
    first = [next(found), next(found)]
    assert [(o.kind, o.item.path.stem) for o in first] == [("written", "0123"), ("written", "0299")]
    assert len(looked) == 2  # and not all 300
    rest = list(found)
    assert {o.kind for o in rest} == {"skipped"}
    assert len({o.item.relative for o in rest}) == len(rest) == 298
    keeper.journal.close(finished=True, all_seen=True)


def test_a_picture_is_named_once_however_often_it_is_looked_at(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 3)
    os.link(folder / "0000.png", folder / "0002.jpg")  # would share a sidecar with 0002.png
    (folder / "bad.png").write_bytes(b"no picture")
    found = list(outcomes(folder, Engine()))
    kinds = {o.item.relative: o.kind for o in found}
    assert len(found) == len(kinds) == 5
    failed = {name for name, kind in kinds.items() if kind == "failed"}
    assert failed == {"0002.png", "0002.jpg", "bad.png"}
