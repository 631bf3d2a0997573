"""TAB in real shells: commands, options, models, pictures, presets."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.llava_cli.cli.conftest import InProcess, Run, process_environment

SHELLS = ("bash", "zsh", "fish")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with pictures and other things."""
    for name in ("photo one.jpg", "plain.PNG", "notes.txt", ".hidden.jpg", "only.gguf"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / "deep.webp").write_bytes(b"x")
    (tmp_path / "hub" / "models--org--cached" / "snapshots").mkdir(parents=True)
    return tmp_path


def offered(run: Run, desk: Path, line: str, shell: str = "fish") -> set[str]:
    """What a shell's script would be told, without the shell."""
    words, _, current = line.rpartition(" ")
    env = {"_LLAVA_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": current,
           "HF_HOME": str(desk)}  # fmt: skip
    ran = run(env=env, cwd=desk)
    assert ran.err == ""
    return {item.split(",")[1].split("\t")[0] for item in ran.out.splitlines() if item}


@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("llava ", {"ask", "pull", "completion"}, {"--help"}),
        ("llava con", {"config", "convert"}, {"ask"}),
        ("llava ask --mod", {"--model"}, {"--mmproj"}),
        ("llava ask p", {"photo one.jpg", "plain.PNG"}, {"notes.txt", ".hidden.jpg"}),
        ("llava ask -i shots/", {"shots/deep.webp"}, {"photo one.jpg"}),
        ("llava ask s", {"shots/"}, {"notes.txt"}),
        ("llava ask .h", {".hidden.jpg"}, {"plain.PNG"}),
        ("llava ask -m ", {"llava-demo", "llava-1.5-7b", "org/cached", "only.gguf"}, {"plain.PNG"}),
        ("llava show org/", {"org/cached"}, {"llava-demo"}),
        ("llava ask --engine ", {"auto", "gguf", "torch"}, set()),
        ("llava ask --device cu", {"cuda", }, {"cuda:N", "cpu"}),
        ("llava config set ", {"model", "engine"}, set()),
        ("llava caption --preset ", {"descriptive", "tags", "ocr"}, set()),
        ("llava caption s", {"shots/"}, {"notes.txt"}),
        ("llava chat p", {"plain.PNG"}, {"notes.txt"}),
        ("llava serve -m llava-1.5", {"llava-1.5-7b"}, {"llava-demo"}),
        ("llava completion ", {"bash", "zsh", "fish", "powershell"}, set()),
        ("llava nonsense --", set(), {"ask"}),
    ],
)  # fmt: skip
def test_what_is_offered(
    run: Run, desk: Path, line: str, wanted: set[str], unwanted: set[str]
) -> None:
    found = offered(run, desk, line)
    assert wanted <= found
    assert not unwanted & found


def test_nothing_heavy_is_imported_for_a_tab(desk: Path) -> None:
    code = (
        "import sys\nfrom llava_cli.cli import main\nmain([])\n"
        "sys.stderr.write(' '.join(n for n in ('huggingface_hub', 'numpy', 'rich', 'PIL', 'torch') "
        "if n in sys.modules))"
    )
    env = {"_LLAVA_COMPLETE": "fish_complete", "COMP_WORDS": "llava ask -m", "COMP_CWORD": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=process_environment(None, env),
        cwd=desk,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "llava-1.5-7b" in done.stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (b"llava ask -m llava-1.6-m", b"llava-1.6-mistral-7b"),
        (b"llava ask pho", b"photo\\ one.jpg"),
    ],
)
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_in_a_real_shell(shell: str, typed: bytes, completed: bytes, desk: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    env = installed(shell, desk)
    screen = type_at(shell, program, env, desk, typed + b"\t", completed)
    assert completed in screen, screen


def installed(shell: str, desk: Path) -> dict[str, str]:
    """A home in which the completion was installed, and `llava` on the PATH."""
    home = desk / "home"
    (home / "bin").mkdir(parents=True)
    command = home / "bin" / "llava"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llava_cli "$@"\n')
    command.chmod(0o755)
    env = process_environment(None, {
        "HOME": str(home), "ZDOTDIR": str(home), "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"), "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "HF_HOME": str(desk), "TERM": "xterm", "LC_ALL": "C.UTF-8",
    })  # fmt: skip
    done = subprocess.run(
        [str(command), "completion", shell, "--install", "-q"], env=env, check=True
    )
    assert done.returncode == 0
    if shell == "bash":  # where bash-completion is there it loads the file itself
        (home / ".bashrc").write_text(f'source "{home}/data/bash-completion/completions/llava"\n')
    return env


def type_at(
    shell: str, program: str, env: dict[str, str], desk: Path, keys: bytes, until: bytes
) -> bytes:
    """Everything that the shell shows after the keys, until the text appears or 60 s are over."""
    start = {
        "bash": ["--rcfile", f"{desk}/home/.bashrc", "-i"],
        "zsh": ["-i"],
        "fish": ["-i"],
    }[shell]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [program, *start], env=env, cwd=desk, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True, preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(slave)
    try:
        read_quiet(master, 3 if shell == "fish" else 1)  # the prompt stands
        os.write(master, keys)
        screen, deadline = b"", time.monotonic() + 60
        while until not in screen and time.monotonic() < deadline:
            if select.select([master], [], [], 1)[0]:
                screen += os.read(master, 4096)
        return screen
    finally:
        process.kill()
        process.wait()
        os.close(master)


def own_terminal() -> None:
    """Shells with job control want the terminal to be theirs."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_quiet(master: int, seconds: float) -> None:
    """Until nothing new comes for a while."""
    while select.select([master], [], [], seconds)[0]:
        os.read(master, 4096)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_the_script_is_printed_and_names_its_variable(llava: InProcess, shell: str) -> None:
    printed = llava("completion", shell)
    assert printed.code == 0
    assert "_LLAVA_COMPLETE" in printed.out and "llava" in printed.out
    assert "%(" not in printed.out


def test_the_script_for_powershell_asks_as_the_answer_expects(
    llava: InProcess, run: Run, desk: Path
) -> None:
    script = llava("completion", "powershell").out
    assert "Register-ArgumentCompleter -Native -CommandName llava" in script
    for left, right in ("{}", "()", "[]"):
        assert script.count(left) == script.count(right)
    for variable in ("_LLAVA_COMPLETE", "COMP_WORDS", "COMP_CWORD"):
        assert variable in script
    assert "powershell_complete" in script
    asked = {"_LLAVA_COMPLETE": "powershell_complete", "COMP_WORDS": "llava ask p"}
    printed = run(env={**asked, "COMP_CWORD": "2"}, cwd=desk)
    assert printed.err == ""
    lines = printed.out.splitlines()  # kind, value, description, as the script takes them apart
    assert lines == ["plain", "'photo one.jpg'", "_", "plain", "plain.PNG", "_"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_installing_twice_changes_nothing_more(
    llava: InProcess, shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".bashrc").write_text("alias x=y")  # no line end
    (home / ".zshrc").write_text("alias x=y")
    for name, value in {"HOME": home, "ZDOTDIR": home, "XDG_CONFIG_HOME": home / "config",
                        "XDG_DATA_HOME": home / "data"}.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    files = llava("completion", shell, "--install", "--json").json["files"]
    before = {file: Path(file).read_text() for file in files}
    assert all(file.startswith(str(home)) for file in files)
    llava("completion", shell, "--install", "-q")
    assert {file: Path(file).read_text() for file in files} == before
    assert all(text.startswith("alias x=y\n") for file, text in before.items() if "rc" in file[-6:])


def test_an_unknown_shell_is_a_usage_error(llava: InProcess) -> None:
    assert llava("completion", "tcsh").code == 2
