"""GGUF models: the text file and the mmproj that belongs to it, told apart by their contents."""

from __future__ import annotations

from pathlib import Path

from llava_cli.errors import ModelInvalid, ModelNotFound
from llava_cli.models.files import ModelFiles
from llava_cli.models.gguf_header import GGUFHeader, is_gguf, read_header
from llava_cli.models.templates import format_of

_TOWER_LAYERS = {768: 12, 1024: 24, 1152: 27, 1280: 32}
"""Width -> layers of the towers that LLaVA models use: CLIP B, L, SigLIP so400m, CLIP H."""


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
    named = header.metadata.get("llava.prompt_format")
    template = header.metadata.get("tokenizer.chat_template")
    if not isinstance(named, str):
        named = format_of(template) if isinstance(template, str) else None
    return ModelFiles(
        reference=reference,
        format="gguf",
        path=text,
        mmproj=projector.path,
        config=header.metadata,
        prompt_format=named,
        bundled=bundled,
    )


def resolve_gguf_folder(folder: Path, mmproj: Path | None, reference: str) -> ModelFiles | None:
    """The one text model of a folder of GGUF files; None where there are no such files."""
    texts = [h for h in _headers(folder) if not h.is_mmproj]
    if not texts:
        return None
    if len(texts) > 1:
        names = ", ".join(header.path.name for header in texts)
        raise ModelInvalid(
            f"{folder} holds several models: {names}", f"name one: -m {texts[0].path}"
        )
    return resolve_gguf(texts[0].path, mmproj, reference)


def check_encoder(header: GGUFHeader) -> None:
    """Refuse what would crash llama.cpp or be read wrongly by it."""
    metadata, path = header.metadata, header.path
    projector = metadata.get("clip.vision.projector_type", metadata.get("clip.projector_type"))
    if metadata.get("clip.has_vision_encoder") is False:
        raise ModelInvalid(f"{path} has no image encoder", "give a mmproj that reads pictures")
    if projector not in (None, "mlp"):
        raise ModelInvalid(
            f"{path} has a projector of kind {projector!r}, which is not supported",
            "use a LLaVA-1.5 style model",
        )
    if "clip.vision.image_grid_pinpoints" in metadata:
        raise ModelInvalid(
            f"{path} cuts pictures into tiles, which is not supported",
            "use a LLaVA-1.5 style model",
        )
    needed = ("v.patch_embd.weight", "v.position_embd.weight", "mm.0.weight", "mm.0.bias")
    missing = [name for name in (*needed, "mm.2.weight", "mm.2.bias") if name not in header.tensors]
    if missing:
        raise ModelInvalid(
            f"{path} is not a complete LLaVA mmproj: it lacks {missing[0]}",
            "convert the model with: llava convert",
        )
    _check_layers(header)


def _check_layers(header: GGUFHeader) -> None:
    """Without `feature_layer` llama.cpp runs one layer fewer than the file says it has."""
    metadata = header.metadata
    blocks = metadata.get("clip.vision.block_count")
    layers = metadata.get("clip.vision.feature_layer")
    hint = "convert the model again with: llava convert"
    if not isinstance(blocks, int) or blocks < 0:
        raise ModelInvalid(f"{header.path} gives no clip.vision.block_count", hint)
    width = metadata.get("clip.vision.embedding_length", 0)
    if layers is None and blocks == _TOWER_LAYERS.get(int(width)):
        return  # all layers stored, one fewer run: LLaVA's "last but one"
    if layers is None:
        raise ModelInvalid(
            f"{header.path} does not say which layer of the image encoder to read "
            "(clip.vision.feature_layer), so llama.cpp would skip its last one",
            hint,
        )
    if not isinstance(layers, list) or not layers or not all(0 <= k <= blocks for k in layers):
        raise ModelInvalid(f"{header.path} has a bad clip.vision.feature_layer: {layers!r}", hint)
    for layer in range(max(layers)):
        if f"v.blk.{layer}.attn_q.weight" not in header.tensors:
            raise ModelInvalid(f"{header.path} lacks layer {layer} of its image encoder", hint)


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
    found = [header for header in _headers(folder) if header.is_mmproj]
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
    raise ModelInvalid(
        f"{text.path} has no mmproj beside it, so it cannot look at pictures",
        "put the model's mmproj-*.gguf beside it, or give it with --mmproj FILE",
    )


def _headers(folder: Path) -> list[GGUFHeader]:
    """Headers of the GGUF files of a folder; damaged strangers are passed over."""
    headers = []
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    except OSError as error:
        raise ModelInvalid(f"cannot read {folder}: {error.strerror or error}") from error
    for path in paths:
        if is_gguf(path):
            try:
                headers.append(read_header(path))
            except ModelInvalid:
                continue
    return headers


def _fits(text: GGUFHeader, mmproj: GGUFHeader) -> bool:
    """Whether the projector's rows are as wide as the language model's embeddings."""
    width = text.metadata.get(f"{text.architecture}.embedding_length")
    last = mmproj.tensors.get("mm.2.bias") or mmproj.tensors.get("mm.0.bias")
    return last is None or width is None or last.shape[0] == width
