"""`config set`, `path`, `edit`: one line changes, everything else in the file stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llava_cli.cli import settings
from tests.llava_cli.cli.conftest import InProcess, Run

OWN = '# my settings\nengine = "gguf"  # the fast one\n\n  "model" = "org/a"\nthreads=3'


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setattr(settings, "user_file_path", lambda: path)
    monkeypatch.chdir(tmp_path)
    return path


def test_a_setting_is_set_changed_and_taken_away(llava: InProcess, user: Path) -> None:
    assert llava("config", "set", "model", "llava-1.5-7b").code == 0
    assert f"model = llava-1.5-7b  (user {user})" in llava("config", "show", "--origin").out
    assert llava("config", "set", "model", 'odd "name"\\', "-q").err == ""
    assert settings.resolve("model").value == 'odd "name"\\'
    assert llava("config", "set", "model", "--unset").code == 0
    assert settings.resolve("model").origin == "default"
    assert llava("config", "set", "threads", "4", "--json").json["value"] == "4"
    assert settings.resolve("threads").value == 4


def test_comments_and_order_stay(llava: InProcess, user: Path) -> None:
    user.parent.mkdir()
    user.write_text(OWN)
    llava("config", "set", "model", "org/b")
    assert user.read_text() == OWN.replace('  "model" = "org/a"', 'model = "org/b"')
    llava("config", "set", "device", "cpu")
    assert user.read_text().startswith("# my settings\n")
    assert user.read_text().endswith('threads=3\ndevice = "cpu"\n')
    llava("config", "set", "engine", "--unset")
    assert user.read_text().startswith('# my settings\n\nmodel = "org/b"\n')


def test_the_projects_file_is_the_nearest(
    llava: InProcess, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llava.toml").write_text("")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    llava("config", "set", "engine", "torch", "--project")
    assert (tmp_path / "llava.toml").read_text() == 'engine = "torch"\n'
    assert llava("config", "path", "--project").out == f"{tmp_path / 'llava.toml'}\n"
    assert llava("config", "path").out == f"{user}\n"
    assert llava("config", "path", "--json").json == {
        "user": str(user),
        "project": str(tmp_path / "llava.toml"),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["engin", "gguf"], "did you mean engine?"),
        (["engine", "ggufff"], "auto, gguf, torch or server"),
        (["threads", "0"], "1 to 1024"),
        (["engine"], "give a VALUE"),
        (["engine", "gguf", "--unset"], "give a VALUE"),
    ],
)
def test_nonsense_writes_nothing(
    llava: InProcess, user: Path, arguments: list[str], said: str
) -> None:
    ran = llava("config", "set", *arguments)
    assert ran.code == 2 and said in ran.err
    assert not user.exists()


def test_a_broken_file_is_not_written_over(llava: InProcess, user: Path) -> None:
    user.parent.mkdir()
    user.write_text("engine = ")
    ran = llava("config", "set", "model", "org/a")
    assert ran.code == 2 and str(user) in ran.err
    assert user.read_text() == "engine = "


def test_edit_opens_the_editor_and_checks_what_was_saved(
    llava: InProcess, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "my editor.py"
    script.write_text("import sys\nopen(sys.argv[2], 'a').write(sys.argv[1] + '\\n')\n")
    monkeypatch.setenv("VISUAL", f"'{sys.executable}' '{script}' 'device = \"cpu\"'")
    assert llava("config", "edit").code == 0
    assert settings.resolve("device").value == "cpu"
    assert "# engine" in user.read_text()
    monkeypatch.setenv("VISUAL", f"'{sys.executable}' '{script}' 'device = 7'")
    wrong = llava("config", "edit")
    assert wrong.code == 2 and str(user) in wrong.err
    monkeypatch.setenv("VISUAL", "no-such-editor-anywhere")
    assert llava("config", "edit").code == 1
    assert llava("config", "edit", "--no-input").code == 2


def test_unwritable_settings_are_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run("config", "set", "model", "x/y", env={"XDG_CONFIG_HOME": str(tmp_path / "file")})
    assert ran.code == 1 and len(ran.err.splitlines()) <= 2
