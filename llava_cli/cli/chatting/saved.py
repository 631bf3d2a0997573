"""A conversation as a file: JSON that can be loaded again, Markdown to read."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from llava_cli.conversation import Conversation, Message
from llava_cli.errors import DataError, ImageError
from llava_cli.images import MAX_BYTES, Image
from llava_cli.writing import write_bytes

VERSION = 1
_HINT = "give a file that /save or /export wrote"


def save(path: Path, conversation: Conversation, model: str) -> None:
    """Write JSON; pictures by path and hash, those that are no files with their bytes."""
    document = {
        "llava_conversation": VERSION,
        "model": model,
        "messages": [_message(message) for message in conversation.messages],
    }
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def load(path: Path) -> tuple[Conversation, str]:
    """The conversation and the model's reference; DataError or ImageError."""
    try:
        if path.stat().st_size > 8 * MAX_BYTES:
            raise DataError(f"{path}: is too large for a conversation", _HINT)
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["llava_conversation"] != VERSION:
            raise DataError(f"{path}: was written by a newer llava", "update llava")
        conversation = Conversation()
        for message in document["messages"]:
            parts = [_part(part) for part in message["content"]]
            if message["role"] not in ("system", "user", "assistant"):
                raise KeyError(message["role"])
            conversation = conversation.add(message["role"], *parts)
        return conversation, str(document["model"])
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", _HINT) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no saved conversation", _HINT) from error


def export_markdown(path: Path, conversation: Conversation, model: str) -> None:
    """Write what was said, as a page."""
    lines = [f"# A conversation with {model}", ""]
    for message in conversation.messages:
        lines += [f"**{message.role}**", ""]
        for image in message.images:
            where = str(image.path.absolute()) if image.path else image.source
            name = where.replace("\\", "/").rsplit("/", 1)[-1].replace("[", "(").replace("]", ")")
            link = where.replace(" ", "%20").replace(">", "%3E").replace("\n", "%0A")
            lines += [f"![{name}](<{link}>)" if image.path else f"*{name}*", ""]
        lines += [message.text, ""]
    write_bytes(path, "\n".join(lines).encode("utf-8", "backslashreplace"))


def _message(message: Message) -> dict[str, Any]:
    content = []
    for part in message.content:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif part.path is not None:
            content.append(
                {"type": "image", "path": str(part.path.absolute()), "sha256": part.sha256}
            )
        else:
            data = base64.b64encode(part.read()).decode("ascii")
            content.append({"type": "image", "source": part.source, "data": data})
    return {"role": message.role, "content": content}


def _part(part: dict[str, Any]) -> str | Image:
    if part["type"] == "text":
        if not isinstance(part["text"], str):
            raise TypeError("text")
        return part["text"]
    if "data" in part:
        data = base64.b64decode(part["data"], validate=True)
        return Image.from_bytes(data, str(part["source"]), "memory").loaded()
    image = Image.from_path(part["path"]).loaded()
    if image.sha256 != part["sha256"]:
        raise ImageError(
            f"{part['path']}: is not the picture any more that the conversation is about",
            "put the right one there",
        )
    return image
