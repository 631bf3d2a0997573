"""LLaVA's published data sets, from the Hugging Face Hub, with the terms they come under.

Nothing is unpacked: archives of pictures are fetched only when asked for, and unpacked by whoever
trusts them. Licences are those their authors state on the Hub.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from llava_cli.errors import LlavaError, ModelNotFound


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


def pull(name: str, out: Path, *, with_pictures: bool, offline: bool) -> list[Path]:
    """Fetch a data set's files into a folder; a broken download is taken up where it ended."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = DATA_SETS[name]
    if offline or constants.HF_HUB_OFFLINE:
        raise ModelNotFound(f"{name} has to be fetched, and llava is offline", "go online once")
    failures: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError, OSError)
    names = [*wanted.files, *(wanted.pictures if with_pictures else ())]
    found = []
    for file in names:
        try:
            path = hf_hub_download(wanted.repo, file, repo_type="dataset", local_dir=out)
        except failures as error:
            raise _failed(wanted, file, error) from error
        found.append(Path(path))
    return found


def _failed(wanted: DataSet, file: str, error: Exception) -> LlavaError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        return LlavaError(
            f"{file} cannot be stored: {error.strerror}", "name another folder with -o"
        )
    return ModelNotFound(
        f"the Hub did not give {wanted.repo}/{file}: {' '.join(str(error).split())[:200]}",
        "check the network; the same command goes on where this one ended",
    )
