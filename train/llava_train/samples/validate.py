"""Whether samples can be trained on: everything that is wrong with them, counted, with examples.

`Checker.check` looks at one row alone; `validate` walks files, and adds what only the whole shows
(an id or a sample that is there twice) and what only the disk knows (pictures that do not decode).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_cli.errors import DataError, ImageError
from llava_cli.images import Image
from llava_train.samples.files import Seen
from llava_train.samples.lengths import LengthOf
from llava_train.samples.paths import stays_inside
from llava_train.samples.reading import rows

TOKEN = "<image>"
ERRORS = {
    "unreadable": "the file breaks off or is not JSON from here on",
    "not_an_object": "a row is not an object",
    "no_conversations": "'conversations' is missing or no list",
    "bad_turn": "a turn without 'from' (human or gpt) and a text 'value'",
    "not_alternating": "two turns of one speaker in a row",
    "no_answer": "no question with an answer",
    "empty_answer": "an answer without text",
    "bad_image": "'image' is not one relative path inside the folder of pictures",
    "no_image_token": "it has a picture, and no turn holds <image>",
    "several_image_tokens": "more than one turn holds <image>",
    "image_token_without_image": "a turn holds <image>, and it has no picture",
    "image_token_in_answer": "an answer holds <image>",
    "image_missing": "the picture is not in the folder",
    "image_broken": "the picture does not decode",
    "duplicate": "the same picture and words as an earlier sample",
    "too_long": "more tokens than --max-length",
}
WARNINGS = {
    "no_id": "no 'id'",
    "duplicate_id": "an id that an earlier sample has",
    "starts_with_gpt": "begins with an answer, which training drops",
    "ends_with_human": "ends with a question, which training drops",
    "repeated_image_token": "one turn holds <image> twice, which training joins",
    "empty_question": "a question without text",
    "no_picture": "a text-only sample",
}
_EXAMPLES = 5
_AHEAD = 64


@dataclass
class Report:
    """What was found."""

    samples: int = 0
    bad: int = 0
    """Samples with at least one error."""
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first few of each kind."""
    longest: int | None = None
    """Tokens of the longest sample, where a tokenizer was given."""

    def add(self, code: str, place: str, detail: str = "") -> None:
        """One more of a kind."""
        self.counts[code] += 1
        if self.counts[code] <= _EXAMPLES:
            text = f"{place}: {detail}" if detail else place
            self.examples.setdefault(code, []).append(text)

    @property
    def errors(self) -> int:
        """Faults that training would stop at or suffer from."""
        return sum(n for code, n in self.counts.items() if code in ERRORS)


def faults(row: Any) -> Iterator[tuple[str, str]]:
    """(code, detail) of everything wrong with one row, as far as it shows by itself."""
    if not isinstance(row, dict):
        yield "not_an_object", ""
        return
    if "id" not in row:
        yield "no_id", ""
    turns = row.get("conversations")
    if not isinstance(turns, list):
        yield "no_conversations", ""
        return
    for position, turn in enumerate(turns, 1):
        known = isinstance(turn, dict) and turn.get("from") in ("human", "gpt")
        if not known or not isinstance(turn.get("value"), str):
            yield "bad_turn", f"turn {position}"
            return
    yield from _order(turns)
    yield from _picture(row, turns)
    for position, turn in enumerate(turns, 1):
        if not turn["value"].replace(TOKEN, "").strip():
            code = "empty_answer" if turn["from"] == "gpt" else "empty_question"
            yield code, f"turn {position}"


def _order(turns: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    speakers = [turn["from"] for turn in turns]
    if speakers and speakers[0] == "gpt":
        yield "starts_with_gpt", ""
        speakers = speakers[1:]
    for position, (one, two) in enumerate(zip(speakers, speakers[1:], strict=False), 1):
        if one == two:
            yield "not_alternating", f"turn {position + 1}"
            break
    if len(speakers) < 2:
        yield "no_answer", ""
    elif speakers[-1] == "human":
        yield "ends_with_human", ""


def _picture(row: dict[str, Any], turns: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    asking = [turn["value"].count(TOKEN) for turn in turns if turn["from"] == "human"]
    if any(TOKEN in turn["value"] for turn in turns if turn["from"] == "gpt"):
        yield "image_token_in_answer", ""
    holding = sum(1 for n in asking if n)
    if row.get("image") is None:
        yield ("image_token_without_image" if holding else "no_picture"), ""
        return
    if picture_name(row) is None:
        yield "bad_image", repr(row["image"])[:80]
    if not holding:
        yield "no_image_token", ""
    elif holding > 1:
        yield "several_image_tokens", f"{holding} turns"
    elif max(asking) > 1:
        yield "repeated_image_token", ""


def picture_name(row: dict[str, Any]) -> str | None:
    """The path of a sample's one picture, if it is one that stays inside its folder."""
    name = row.get("image")
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    return name if isinstance(name, str) and stays_inside(name) else None


def validate(
    paths: Sequence[Path],
    *,
    images: Path | None = None,
    decode: bool = True,
    length_of: LengthOf | None = None,
    max_length: int = 2048,
    workers: int = 4,
    progress: Callable[[int], None] = lambda n: None,
) -> Report:
    """Every sample of the files; memory does not grow with their number."""
    report = Report()
    checker = _Whole(report, length_of, max_length)
    pictures = _Pictures(report, images, decode, workers) if images is not None else None
    try:
        for path in paths:
            for place, row in _placed(path, report):
                report.samples += 1
                bad = checker.check(place, row)
                if pictures is not None and isinstance(row, dict):
                    bad = pictures.check(place, picture_name(row), bad)
                report.bad += bad
                if report.samples % 1000 == 0:
                    progress(report.samples)
        if pictures is not None:
            pictures.finish()
    finally:
        checker.close()
        if pictures is not None:
            pictures.close()
    if not report.samples and not report.errors:
        raise DataError("the data holds no sample", "give LLaVA JSON, JSON Lines or parquet")
    return report


def _placed(path: Path, report: Report) -> Iterator[tuple[str, Any]]:
    """Each row with its place; a file that breaks off is a fault and not the end."""
    position = 0
    try:
        for position, row in enumerate(rows(path), 1):
            name = f" ({row['id']})" if isinstance(row, dict) and "id" in row else ""
            yield f"{path.name}[{position - 1}]{name}"[:200], row
    except DataError as error:
        report.add("unreadable", f"{path.name}[{position}]", error.message)


class _Whole:
    """What a row shows by itself, and what only all of them together show."""

    def __init__(self, report: Report, length_of: LengthOf | None, max_length: int) -> None:
        self._report = report
        self._length_of = length_of
        self._max_length = max_length
        self._ids = Seen()
        self._samples = Seen()

    def check(self, place: str, row: Any) -> bool:
        """Whether the sample has an error."""
        found = list(faults(row))
        for code, detail in found:
            self._report.add(code, place, detail)
        if any(code in ERRORS for code, _ in found):
            return True
        if "id" in row and not self._ids.add(str(row["id"])):
            self._report.add("duplicate_id", place)
        words = "\0".join(turn["value"] for turn in row["conversations"])
        bad = not self._samples.add(f"{row.get('image')}\0{words}")
        if bad:
            self._report.add("duplicate", place)
        if self._length_of is not None:
            length = self._length_of(row)
            self._report.longest = max(self._report.longest or 0, length)
            if length > self._max_length:
                self._report.add("too_long", place, f"{length} tokens")
                bad = True
        return bad

    def close(self) -> None:
        self._ids.close()
        self._samples.close()


class _Pictures:
    """Decodes every picture once, a few at a time in threads, ahead of the report."""

    def __init__(self, report: Report, images: Path, decode: bool, workers: int) -> None:
        self._report = report
        self._images = images
        self._decode = decode
        self._seen = Seen()
        self._pool = ThreadPoolExecutor(workers, "llava-validate")
        self._waiting: deque[tuple[str, bool, Future[str | None]]] = deque()
        """Place, whether the sample is known to be bad, and what decoding says."""

    def check(self, place: str, name: str | None, bad: bool) -> bool:
        """Whether the sample has an error; one that decoding finds is added later."""
        if name is None or not self._seen.add(name):
            return bad
        path = self._images / name
        if not path.is_file():
            self._report.add("image_missing", place, name)
            return True
        if self._decode:
            self._waiting.append((f"{place}: {name}", bad, self._pool.submit(_broken, path)))
            while len(self._waiting) > _AHEAD:
                self._take()
        return bad

    def finish(self) -> None:
        while self._waiting:
            self._take()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._seen.close()

    def _take(self) -> None:
        place, bad, future = self._waiting.popleft()
        why = future.result()
        if why is not None:
            self._report.add("image_broken", place, why)
            self._report.bad += not bad


def _broken(path: Path) -> str | None:
    """Why a picture does not decode; None if it does."""
    try:
        Image.from_path(path).open().close()
    except ImageError as error:
        return error.message
    return None
