"""GGUF models: the text file and the mmproj that belongs to it, told apart by their contents."""

from __future__ import annotations

from pathlib import Path

from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models.files import ModelFiles
from llava_cli.models.gguf_header import GGUFHeader, read_header
from llava_cli.models.mmproj import check_encoder, features_width, is_llava
from llava_cli.models.templates import OWN_TEMPLATE, format_of


def resolve_gguf(
    text: Path, mmproj: Path | None, reference: str, *, bundled: bool = False
) -> ModelFiles:
    """A text .gguf with its mmproj: the one given, or the one beside it."""
    header = read_header(text)
    if header.is_mmproj:
        raise ModelInvalid(
            f"{text} holds an image encoder (mmproj), not a language model",
            "give the text model's .gguf with -m; this file belongs to --mmproj",
        )
    projector = _check_mmproj(header, mmproj) if mmproj else _find_mmproj(header)
    check_encoder(projector)
    return ModelFiles(
        reference=reference,
        format="gguf",
        path=text,
        mmproj=projector.path,
        config=header.metadata,
        prompt_format=_prompt_format(header, projector),
        bundled=bundled,
    )


def resolve_gguf_folder(folder: Path, mmproj: Path | None, reference: str) -> ModelFiles | None:
    """The one text model of a folder of GGUF files; None where there are no such files."""
    headers, damage = _headers(folder)
    texts = [header for header in headers if not header.is_mmproj]
    if not texts:
        if damage:
            raise damage[0]
        return None
    if len(texts) > 1:
        names = ", ".join(header.path.name for header in texts)
        raise ModelInvalid(
            f"{folder} holds several models: {names}", f"name one: -m {texts[0].path}"
        )
    return resolve_gguf(texts[0].path, mmproj, reference)


def _prompt_format(text: GGUFHeader, mmproj: GGUFHeader) -> str | None:
    """LLaVA's formats by name or by what the template writes; else the template itself."""
    named = text.metadata.get("llava.prompt_format")
    if isinstance(named, str):
        return named
    template = text.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return None
    return (format_of(template) if is_llava(mmproj) else None) or OWN_TEMPLATE


def _check_mmproj(text: GGUFHeader, path: Path) -> GGUFHeader:
    """The mmproj that was named, if it is one and fits."""
    if not path.exists():
        raise ModelNotFound(f"no such mmproj file: {path}", "check the path after --mmproj")
    header = read_header(path)
    if not header.is_mmproj:
        raise ModelInvalid(
            f"{path} is no mmproj: it holds a {header.architecture or 'nameless'} model",
            "give the file that was made together with the text model",
        )
    if not _fits(text, header):
        raise ModelInvalid(
            f"{path} does not belong to {text.path}: its features have another width",
            "give the mmproj that was made together with the text model",
        )
    return header


def _find_mmproj(text: GGUFHeader) -> GGUFHeader:
    """The one fitting mmproj beside the text model."""
    folder = text.path.parent
    headers, damage = _headers(folder)
    found = [header for header in headers if header.is_mmproj]
    fitting = [header for header in found if _fits(text, header)]
    if len(fitting) > 1:
        names = ", ".join(header.path.name for header in fitting)
        raise ModelInvalid(
            f"several mmproj files could belong to {text.path.name}: {names}",
            f"choose one: --mmproj {fitting[0].path}",
        )
    if fitting:
        return fitting[0]
    if found:
        raise ModelInvalid(
            f"no mmproj in {folder} belongs to {text.path.name}: {found[0].path.name} has "
            "features of another width",
            "give the right one with --mmproj FILE",
        )
    if damage:
        raise damage[0]
    raise ModelInvalid(
        f"{text.path} has no mmproj beside it, so it cannot look at pictures",
        "put the model's mmproj-*.gguf beside it, or give it with --mmproj FILE",
    )


def _headers(folder: Path) -> tuple[list[GGUFHeader], list[ModelInvalid]]:
    """Headers of a folder's GGUF files, and what is wrong with those that cannot be read."""
    headers: list[GGUFHeader] = []
    damage: list[ModelInvalid] = []
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    except OSError as error:
        raise ModelInvalid(f"cannot read {folder}: {error.strerror or error}") from error
    for path in paths:
        try:
            headers.append(read_header(path))
        except ModelInvalid as error:
            damage.append(error)
    return headers, damage


def _fits(text: GGUFHeader, mmproj: GGUFHeader) -> bool:
    """Whether the projector's rows are as wide as the language model's embeddings."""
    wanted = text.metadata.get(f"{text.architecture}.embedding_length")
    there = features_width(mmproj)
    return there is None or wanted is None or there == wanted
