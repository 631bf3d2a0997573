"""The command `llava`: which commands there are, and what becomes of their failures.

Imports nothing that a command needs: a command's module is imported when the command is named.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click

from llava_cli import __version__
from llava_cli.cli.groups import LazyGroup
from llava_cli.cli.options import Common
from llava_cli.errors import LlavaError, OutOfMemory
from llava_cli.terminal.documents import write_failure

INTERRUPTED = 130
PIPE_CLOSED = 141

COMMANDS = {
    "ask": ("llava_cli.cli.ask:ask", "Ask a model about pictures."),
    "chat": ("llava_cli.cli.chat:chat", "Talk with a model about pictures."),
    "caption": ("llava_cli.cli.caption:caption", "Caption many pictures."),
    "logs": ("llava_cli.cli.logs:logs", "Look at what was asked and answered before."),
    "serve": ("llava_cli.cli.serve:serve", "Answer over HTTP, as OpenAI's API does."),
    "convert": ("llava_cli.cli.convert:convert", "Turn a checkpoint into GGUF files."),
    "train": ("llava_cli.cli.train:train", "Train a model: stage 1, stage 2."),
    "eval": ("llava_cli.cli.eval:evaluate", "Measure models; score stored answers."),
    "data": ("llava_cli.cli.data:data", "Make data for training and tests."),
    "cache": ("llava_cli.cli.cache:cache", "Show or clear what is kept between runs."),
    "pull": ("llava_cli.cli.pull:pull", "Fetch a model from the Hub."),
    "ls": ("llava_cli.cli.store:ls", "List the models on this disk."),
    "show": ("llava_cli.cli.store:show", "Tell what a model is."),
    "rm": ("llava_cli.cli.store:rm", "Remove a model from this disk."),
    "verify": ("llava_cli.cli.pull:verify", "Check a model's files to the last byte."),
    "alias": ("llava_cli.cli.alias:alias", "List and make short names for models."),
    "config": ("llava_cli.cli.config:config", "Show and change the settings."),
    "completion": ("llava_cli.cli.completion:completion", "Complete with TAB in your shell."),
    "doctor": ("llava_cli.cli.doctor:doctor", "Report what is installed and which engines work."),
}

EXAMPLES = (
    ('llava ask photo.jpg "what is unusual here?"', "an answer about a picture"),
    ('llava ask *.png "describe the picture" --each', "one JSON line a picture"),
    ("llava doctor", "what works on this machine"),
    ("llava ask --help", "everything about one command"),
)


@click.group(
    "llava",
    cls=LazyGroup,
    lazy=COMMANDS,
    examples=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="llava", message="%(prog)s %(version)s")
def app() -> None:
    """Look at pictures with a local model, and make such models."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is the one that `errors.py` and cli.md promise."""
    if "_LLAVA_COMPLETE" in os.environ:  # a shell asks what could come next
        from llava_cli.cli.completion import answer

        return answer(app)
    arguments = list(sys.argv[1:] if args is None else args)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    failure = _Failure(as_json="--json" in options, debug="--debug" in options)
    _prepare_streams()
    if not failure.debug:
        _keep_quiet()
        sys.excepthook = failure.unexpected
    try:
        with app.make_context("llava", arguments, obj=Common()) as context:
            app.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return failure.after_flush(error.exit_code)
    except click.ClickException as error:
        return failure.of_click(error)
    except LlavaError as error:
        return failure.of_llava(error)
    except (KeyboardInterrupt, click.Abort):
        return failure.show("Interrupted", "interrupted", "", INTERRUPTED)
    except BrokenPipeError:
        return _leave_pipe()
    except OSError as error:
        return failure.of_system(error)
    except MemoryError as error:
        hint = "use a smaller picture or model, or close other programs"
        return failure.of_llava(OutOfMemory("not enough memory", hint), error)
    return 0


_REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room: your share of the disk is used up",
    errno.EACCES: "check the permissions, or name another place",
    errno.EPERM: "check the permissions, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.ENOTDIR: "a file is in the way: name another path",
    errno.EEXIST: "a file is in the way: name another path",
    errno.EISDIR: "a folder is in the way: name another path",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.EMFILE: "close other programs, or raise the limit: ulimit -n",
}
"""What helps against what a system refuses."""


class _Failure:
    """Prints failures in the form that was asked for."""

    def __init__(self, *, as_json: bool, debug: bool) -> None:
        self.as_json = as_json
        self.debug = debug

    def show(self, kind: str, message: str, hint: str, code: int) -> int:
        """Write what is wrong to stderr and hand the exit code on."""
        if self.debug and sys.exc_info()[1] is not None:
            traceback.print_exc()
        try:
            write_failure(kind, message, hint, as_json=self.as_json)
        except BrokenPipeError:
            return _leave_pipe()
        return code

    def of_llava(self, error: LlavaError, cause: BaseException | None = None) -> int:
        """A failure of our own tree."""
        error.__cause__ = error.__cause__ or cause
        return self.show(type(error).__name__, error.message, error.hint, error.exit_code)

    def of_click(self, error: click.ClickException) -> int:
        """Arguments that click refused."""
        context = getattr(error, "ctx", None)
        if isinstance(error, click.exceptions.NoArgsIsHelpError) and not self.as_json:
            sys.stderr.write(error.format_message() + "\n")
            return error.exit_code
        path = context.command_path if context is not None else "llava"
        message = " ".join(error.format_message().split())
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            message = "a command is missing"
        return self.show("UsageError", message, f"see {path} --help", error.exit_code)

    def of_system(self, error: OSError) -> int:
        """A disk that is full, a folder that is read-only: whatever the system refused."""
        name = f"{error.filename}: " if error.filename else ""
        message = f"{name}{error.strerror or error}"
        hint = _REMEDIES.get(error.errno or 0, "--debug shows where")
        code = self.show(type(error).__name__, message, hint, 1)
        try:
            sys.stdout.flush()
        except OSError:  # it was stdout, and the interpreter would flush it once more
            _leave_pipe()
        return code

    def after_flush(self, code: int) -> int:
        """`--help` and `--version` end here; their reader may be gone, too."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return _leave_pipe()
        return code

    def unexpected(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Everything else, as the interpreter's last resort (exit code 1)."""
        message = f"{kind.__name__}: {error}" if str(error) else kind.__name__
        hint = "this should not happen: please report it with the output of --debug"
        self.show(kind.__name__, message, hint, 1)


def _prepare_streams() -> None:
    """Streams that exist and never fail on a character they cannot show."""
    for name, handler in (("stdout", "surrogateescape"), ("stderr", "backslashreplace")):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed by the caller: >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
            stream.reconfigure(errors=handler if utf8 else "backslashreplace")


def _keep_quiet() -> None:
    """Remarks of libraries are for developers: `--debug` shows them."""
    import warnings

    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _leave_pipe() -> int:
    """The reader has gone: say nothing, now and when the interpreter flushes."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(devnull, stream.fileno())
        except (OSError, ValueError, AttributeError):  # no file behind it (tests, embedding)
            continue
    return PIPE_CLOSED
