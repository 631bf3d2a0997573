"""LLaVA's published data sets, from the Hugging Face Hub, with the terms they come under.

Nothing is unpacked: archives of pictures are fetched only when asked for, and unpacked by whoever
trusts them. Licences are those their authors state; what the Hub says today is shown beside.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llava_cli.errors import DataError, LlavaError, ModelNotFound
from llava_cli.models.cache import checksum
from llava_cli.models.listing import Listing, RemoteFile, list_repo
from llava_cli.models.transfer import fetch_into


@dataclass(frozen=True)
class DataSet:
    """One of them."""

    repo: str
    files: tuple[str, ...]
    pictures: tuple[str, ...]
    """Archives, fetched with --pictures."""
    samples: int
    licence: str
    terms: str
    pictures_from: str = ""
    """Where pictures come from, if not from here."""


_GPT = "made with OpenAI's models: their terms of use apply as well"
DATA_SETS = {
    "llava-instruct-150k": DataSet(
        "liuhaotian/LLaVA-Instruct-150K",
        ("llava_instruct_150k.json",),
        (),
        157_712,
        "CC BY 4.0",
        _GPT,
        "COCO train2014 or train2017 (cocodataset.org)",
    ),
    "mix665k": DataSet(
        "liuhaotian/LLaVA-Instruct-150K",
        ("llava_v1_5_mix665k.json",),
        (),
        665_298,
        "CC BY 4.0",
        f"{_GPT}; parts from VQAv2, GQA, OKVQA, OCR-VQA, A-OKVQA, TextCaps, RefCOCO, Visual Genome "
        "and ShareGPT keep their own terms",
        "COCO train2017, GQA, OCR-VQA, TextVQA, Visual Genome",
    ),
    "blip-558k": DataSet(
        "liuhaotian/LLaVA-Pretrain",
        ("blip_laion_cc_sbu_558k.json",),
        ("images.zip",),
        558_128,
        "other: those of CC3M, LAION and SBU, and BLIP's",
        "captions by BLIP; pictures belong to their owners: for research",
    ),
    "cc3m-595k": DataSet(
        "liuhaotian/LLaVA-CC3M-Pretrain-595K",
        ("chat.json",),
        ("images.zip",),
        595_375,
        "other: that of CC3M, and BLIP's",
        "pictures belong to their owners: for research",
    ),
}


@dataclass(frozen=True)
class Plan:
    """What a download will fetch."""

    wanted: DataSet
    listing: Listing
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(file.size for file in self.files)


def plan(name: str, *, with_pictures: bool, offline: bool) -> Plan:
    """Ask the Hub for a data set's files and its licence; nothing is fetched."""
    from huggingface_hub import constants

    wanted = DATA_SETS[name]
    if offline or constants.HF_HUB_OFFLINE:
        raise ModelNotFound(f"{name} has to be fetched, and llava is offline", "go online once")
    listing = list_repo(wanted.repo, None, "dataset")
    there = {file.name: file for file in listing.files}
    names = [*wanted.files, *(wanted.pictures if with_pictures else ())]
    gone = [file for file in names if file not in there]
    if gone:
        raise ModelNotFound(
            f"{wanted.repo} holds no {gone[0]} any more", "see what it holds on the Hub's own page"
        )
    return Plan(wanted, listing, tuple(there[file] for file in names))


def pull(planned: Plan, out: Path, told: Callable[[RemoteFile, int], None]) -> list[Path]:
    """Fetch what is planned; whatever ends it, the next call goes on where it stopped.

    Every file is compared with the Hub's checksum before it stands under its name. Raises
    DataError where another file of that name is there already: it is the person's.
    """
    repo, commit = planned.wanted.repo, planned.listing.commit
    found = []
    try:
        missing = [file for file in planned.files if not _is_there(out, file)]
        _check_room(out, sum(file.size for file in missing))
        for file in planned.files:
            if file in missing:
                fetch_into(out, repo, commit, file, partial(told, file), "dataset")
            else:
                told(file, file.size)
            found.append(out / file.name)
    except OSError as error:
        raise LlavaError(
            f"{out} cannot be written: {error.strerror or error}", "name another folder with -o"
        ) from error
    return found


def _is_there(out: Path, file: RemoteFile) -> bool:
    path = out / file.name
    if not path.exists():
        return False
    if path.is_file() and path.stat().st_size == file.size:
        if checksum(path, file.checksum) == file.checksum:
            return True
    raise DataError(
        f"{path} is there already, and is not what the Hub has",
        "move it away, or name another folder with -o",
    )


def _check_room(out: Path, needed: int) -> None:
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    if shutil.disk_usage(place).free < needed:
        raise LlavaError(
            f"{needed / 1e9:.1f} GB are to be fetched, and the disk of {place} has less room",
            "make room, or name a folder on another disk with -o",
        )
