"""What was asked and answered, in a database of the person's own: found, searched, continued.

Pictures are remembered by hash and path, never by their bytes. Not here: whether anything is to be
remembered (settings), how it is shown (`cli/logs.py`).
"""

from __future__ import annotations

from llava_cli.history.store import (
    Exchange,
    History,
    Picture,
    conversation_of,
    database,
    remember,
)

__all__ = ["Exchange", "History", "Picture", "conversation_of", "database", "remember"]
