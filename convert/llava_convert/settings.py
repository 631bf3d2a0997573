"""Values of a JSON configuration, typed, with an error that names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_cli.errors import ModelInvalid


class Settings:
    """One object of a configuration file, with what is assumed where it is silent.

    A key that is null is treated as absent, as transformers does.
    """

    def __init__(
        self, where: str, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.where = where
        self._values = {**(defaults or {}), **{k: v for k, v in values.items() if v is not None}}
        self._null = {k for k, v in values.items() if v is None}

    def section(self, key: str, defaults: Mapping[str, Any] | None = None) -> Settings:
        """A nested object; an absent one is empty."""
        value = self._values.get(key, {})
        if not isinstance(value, Mapping):
            raise ModelInvalid(f"{key} in {self.where} is not an object")
        return Settings(key, value, defaults)

    def get(self, key: str, default: Any = None) -> Any:
        """As it stands; None where the file says null, even if a default is known."""
        return None if key in self._null else self._values.get(key, default)

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(key, value, "a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._values.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def _wrong(self, key: str, value: Any, expected: str) -> ModelInvalid:
        if value is None:
            return ModelInvalid(f"{self.where} gives no {key}", "check config.json")
        return ModelInvalid(
            f"{key} in {self.where} is {value!r}, not {expected}", "check config.json"
        )
