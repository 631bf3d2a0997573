"""`llava doctor --tune`: measures which settings are quickest here, and keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_cli.cli.options import common
from llava_cli.cli.settings import resolve
from llava_cli.errors import UsageError

if TYPE_CHECKING:
    from llava_cli.engines.gguf.tune import Trial


def run(reference: str | None) -> None:
    """Measure with one model; later runs with such a model use what was found."""
    from llava_cli import engines, models
    from llava_cli.engines.tuning import remember
    from llava_cli.terminal.documents import write_document
    from llava_cli.terminal.streams import note, write

    name = resolve("model", reference).value
    files = models.resolve(None if name is None else str(name), offline=common().offline)
    if files.format != "gguf":
        raise UsageError("only GGUF models are tuned", "name one with -m FILE.gguf")

    def tell(trial: Trial) -> None:
        if not common().quiet and not common().json:
            note(_line(trial))

    found = engines.tune(files, report=tell)
    path = remember(home(), files, found.best)
    if common().json:
        write_document(_document(files.reference, found, path))
        return
    write(f"quickest for {files.reference}: {_line(found)}\nkept in {path}\n")


def home() -> Path:
    """LLAVA_HOME."""
    return Path(str(resolve("home").value)).expanduser()


def _line(trial: Trial) -> str:
    best = trial.best
    return (
        f"threads {best.threads}, ubatch {best.ubatch}, repack {'on' if best.repack else 'off'},"
        f" flash attention {'on' if best.flash_attention else 'off'}:"
        f" load {trial.load_s:.1f} s, read {trial.prefill:.0f}, write {trial.decode:.1f} tokens/s"
    )


def _document(reference: str, trial: Trial, path: Path) -> dict[str, Any]:
    best = trial.best
    return {
        "model": reference,
        "threads": best.threads,
        "ubatch": best.ubatch,
        "repack": best.repack,
        "flash_attention": best.flash_attention,
        "load_s": trial.load_s,
        "prefill_tokens_per_s": trial.prefill,
        "decode_tokens_per_s": trial.decode,
        "file": str(path),
    }
