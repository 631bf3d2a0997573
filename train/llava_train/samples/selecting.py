"""`llava data filter` as a whole: captions in, the chosen ones out as stage-1 samples.

Reads the file twice, and what it chose once more where a size is asked for; holds counts of noun
phrases, and no captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llava_cli.errors import DataError, UsageError
from llava_train.samples.captions import Caption, as_sample, captions
from llava_train.samples.noun_filter import count_phrases, kept, sampled
from llava_train.samples.phrases import chunker
from llava_train.samples.reading import samples, some
from llava_train.samples.writing import form_of, write_all, writer


def select(
    data: Path,
    out: Path,
    *,
    least: int,
    cap: int,
    size: int | None,
    tagger: str,
    seed: int,
    requests: Sequence[str],
) -> dict[str, Any]:
    """Write the chosen captions to `out`; gives the counts for card and report."""
    if form_of(out) == "webdataset":
        raise UsageError(f"{out} has no form", "end its name with .json, .jsonl or .parquet")
    if out.exists() and out.resolve() == data.resolve():
        raise UsageError(f"{out} is what is to be read", "name another file")
    chunk = chunker(tagger)
    counts = count_phrases((caption.text for caption in captions(data)), chunk, least)
    if not counts.captions:
        raise DataError(f"{data} holds no captions", "see llava data filter --help")
    rows = ((position, caption) for position, caption in enumerate(captions(data)))
    chosen = kept(rows, _text, chunk, counts, cap=cap, seed=seed)
    lacking = f"no noun phrase of {data} is in {least} captions, so none is kept"
    chosen = some(chosen, lacking, "take a lower --least")
    made = (as_sample(caption, position, requests, seed) for position, caption in chosen)
    found = {
        "captions": counts.captions,
        "noun_phrases": counts.phrases,
        "noun_phrases_counted": len(counts.often),
        "least": least,
        "cap": cap,
    }
    if size is None:
        pool = total = write_all(out, made)
    else:
        pool, total = _of_size(made, out, size, seed)
    return {**found, "pool": pool, "size": size, "samples": total}


def _of_size(made: Any, out: Path, size: int, seed: int) -> tuple[int, int]:
    """(chosen, written): as many as asked for, drawn from a pool that lies aside meanwhile."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".llava-", dir=out.parent) as folder:
        aside = Path(folder) / "pool.jsonl"
        pool = 0
        with writer(aside, "jsonl") as file:
            for row in made:
                file.add(row)
                pool += 1
        total = write_all(out, sampled(samples(aside), pool, min(size, pool), seed))
    return pool, total


def _text(row: tuple[int, Caption]) -> str:
    return row[1].text
