"""Every error a person can cause or meet, each with its exit code.

LlavaError (1)                a runtime error
├── UsageError (2)            arguments that cannot be understood
├── ModelError (3)            a model that cannot be used
│   ├── ModelNotFound         missing, gated or offline
│   └── ModelInvalid          files that are corrupt, incomplete or unsupported
├── ImageError (4)            an image that cannot be used
├── PartialFailure (5)        a batch that finished with some failures
├── OutOfMemory (6)           the model or the picture did not fit
├── DataError (1)             training or evaluation data that cannot be used
└── MissingDependency (1)     an optional package is not installed

`message` says in one line what is wrong, `hint` in one line what to do about it. Foreign errors are
mapped to these where the foreign library is called, with `raise ... from`.
"""


class LlavaError(Exception):
    """A failure with one line of explanation and one line of remedy."""

    exit_code = 1
    remedy = "llava doctor says what works here; --debug shows where it comes from"
    """What is to be done where nothing better can be said."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.remedy


class UsageError(LlavaError):
    """Arguments that cannot be understood."""

    exit_code = 2
    remedy = "--help shows what can be given"


class ModelError(LlavaError):
    """A model that cannot be used."""

    exit_code = 3


class ModelNotFound(ModelError):
    """A model that is missing, gated, or cannot be fetched while offline."""


class ModelInvalid(ModelError):
    """Model files that are corrupt, incomplete or of an unsupported kind."""

    remedy = "fetch or convert the model again, or use another one"


class ImageError(LlavaError):
    """An image that cannot be used."""

    exit_code = 4
    remedy = "give another picture, or save this one anew"


class PartialFailure(LlavaError):
    """A batch that finished, but not for every item."""

    exit_code = 5


class OutOfMemory(LlavaError):
    """The model or the picture did not fit into memory."""

    exit_code = 6


class DataError(LlavaError):
    """Training or evaluation data that cannot be used."""


class MissingDependency(LlavaError):
    """An optional package that this command needs is not installed."""
