"""Prompts and pixels as a model's own processor makes them, for `pytorch_any.py`.

Any family of transformers' `AutoModelForImageTextToText`: its chat template writes, its image
processor cuts and counts. A user's words stay words. Needs no weights.
Legend: B conversations, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llava_cli.conversation import Conversation
from llava_cli.engines import answer
from llava_cli.engines.quiet import silent
from llava_cli.errors import ModelInvalid, UsageError
from llava_cli.models.files import ModelFiles


class Prompts:
    """Writes conversations down for one model."""

    def __init__(self, files: ModelFiles) -> None:
        self._reference = files.reference
        self._processor = _processor(files)
        self._sanitises = True
        self.image_id = _image_id(read_config(files))
        """The id that stands at each position of a picture; None where the model names none."""

    def inputs(self, conversations: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        """Prompts of equal continuation, padded on the left, and their pixels; `input_ids` (B, S).

        Raises UsageError for texts that the processor would misread, ModelInvalid for what it
        cannot write.
        """
        continued = {answer.is_continued(conversation) for conversation in conversations}
        if len(continued) > 1:
            raise UsageError("a batch cannot mix answers to begin with answers to go on with", "")
        try:
            inputs = self._written(conversations, goes_on=continued == {True})
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ModelInvalid(
                f"the processor of {self._reference} cannot write this prompt: {reason}",
                "ask with fewer pictures or without a system message, or use another model",
            ) from error
        return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}

    def _written(self, conversations: Sequence[Conversation], *, goes_on: bool) -> Any:
        """The processor's own doing, with a user's "<image>" or "</s>" as plain text."""
        settings: dict[str, Any] = {
            "tokenize": True,
            "return_dict": True,
            "return_tensors": "pt",
            "add_generation_prompt": not goes_on,
            "continue_final_message": goes_on,
        }
        messages = [_messages(conversation) for conversation in conversations]
        write = self._processor.apply_chat_template
        if self._sanitises:
            try:
                return write(
                    messages,
                    sanitize_control_tokens=True,
                    processor_kwargs={"padding": True},  # `write` changes it
                    **settings,
                )
            except (ValueError, NotImplementedError) as error:
                if isinstance(error, ValueError) and "char_to_token" not in str(error):
                    raise
                self._sanitises = False  # some families' processors and tokenizers cannot
        self._refuse_special_tokens(conversations)
        return write(messages, processor_kwargs={"padding": True}, **settings)

    def _refuse_special_tokens(self, conversations: Sequence[Conversation]) -> None:
        """Where the processor would take a user's words for its own marks."""
        marks = set(self._processor.tokenizer.get_added_vocab())
        for conversation in conversations:
            for message in conversation.messages:
                if found := next((mark for mark in marks if mark in message.text), None):
                    raise UsageError(
                        f"the text holds {found}, which {self._reference} would not read as words",
                        "write it differently",
                    )


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as transformers' processors read it."""
    messages = []
    for message in conversation.messages:
        content: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                content.append({"type": "image", "image": part.open()})
        messages.append({"role": message.role, "content": content})
    return messages


def _processor(files: ModelFiles) -> Any:
    from transformers import AutoProcessor

    try:
        with silent():
            processor: Any = AutoProcessor.from_pretrained(
                files.path, local_files_only=True, trust_remote_code=False
            )
    except ImportError as error:
        raise ModelInvalid(
            f"the processor of {files.reference} needs a package that is missing: {error}",
            "install it; for some models that is torchvision",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelInvalid(
            f"cannot read the processor of {files.reference}: {error}", "download the model again"
        ) from error
    if not getattr(processor, "chat_template", None) or not hasattr(processor, "tokenizer"):
        raise ModelInvalid(
            f"{files.reference} has no chat template, so nobody knows how to ask it",
            "use a model that was trained to chat (instruct, it, chat in its name)",
        )
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def read_config(files: ModelFiles) -> Any:
    """transformers' configuration of a model, with what config.json leaves out."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(files.path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelInvalid(
            f"cannot read the settings of {files.reference}: {error}", "check its config.json"
        ) from error


def _image_id(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    return None
