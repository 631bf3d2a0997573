"""Precedence of settings: flag > environment > llava.toml > user config > default."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_cli.cli import settings
from llava_cli.errors import UsageError
from tests.llava_cli.cli.conftest import InProcess, Run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """llava.toml of a folder above the working directory."""
    (tmp_path / "project" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "below")
    return tmp_path / "project" / "llava.toml"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "user" / "config.toml"
    path.parent.mkdir()
    monkeypatch.setattr(settings, "user_file_path", lambda: path)
    return path


def test_each_source_overrides_the_one_below(
    project: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.resolve("engine") == settings.Value("auto", "default")
    user.write_text('engine = "torch"\n')
    assert settings.resolve("engine") == settings.Value("torch", f"user {user}")
    project.write_text('engine = "gguf"\n')
    assert settings.resolve("engine") == settings.Value("gguf", f"project {project}")
    monkeypatch.setenv("LLAVA_ENGINE", "torch")
    assert settings.resolve("engine") == settings.Value("torch", "environment LLAVA_ENGINE")
    assert settings.resolve("engine", "gguf") == settings.Value("gguf", "flag")


def test_settings_reach_the_engine(
    llava: InProcess, project: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_text('model = "org/name"\nthreads = 3\n')
    monkeypatch.setenv("LLAVA_DEVICE", "cuda:1")
    found = llava("ask", "hi", "--json", "--engine", "gguf")
    assert found.json["model"] == "org/name"
    wanted = {"engine": "gguf", "device": "cuda:1", "threads": 3, "prompt_format": None}
    assert llava.load_options.items() >= wanted.items()


@pytest.mark.parametrize(
    ("name", "text"),
    [("engine", "gguff"), ("device", "gpu"), ("threads", "0"), ("threads", "many")],
)
def test_nonsense_in_a_variable_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"LLAVA_{name.upper()}", text)
    with pytest.raises(UsageError, match=f"LLAVA_{name.upper()}") as caught:
        settings.resolve(name)
    assert text in caught.value.message


def test_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_ENGINE", "")
    assert settings.resolve("engine").origin == "default"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("engine = ", "TOML"),
        ('engin = "gguf"', "did you mean engine?"),
        ("[table]\n", "unknown setting"),
        ("threads = true", "threads"),
        ("engine = 3", "engine"),
        ("engine = []", "engine"),
    ],
)
def test_nonsense_in_a_file_names_the_file(project: Path, text: str, word: str) -> None:
    project.write_text(text)
    with pytest.raises(UsageError) as caught:
        settings.resolve("engine") if "threads" not in text else settings.resolve("threads")
    assert str(project) in caught.value.message
    assert word in caught.value.message + caught.value.hint


def test_a_path_in_a_file_is_beside_that_file(project: Path) -> None:
    project.write_text('model = "./models/mine"\n')
    assert settings.resolve("model").value == str(project.parent / "models/mine")


def test_show_as_text_and_json(llava: InProcess, project: Path, user: Path) -> None:
    project.write_text('model = "org/name"\n')
    assert "model = org/name\n" in llava("config", "show").out
    assert f"model = org/name  (project {project})" in llava("config", "show", "--origin").out
    plain = llava("config", "show", "--json").json
    assert (plain["model"], plain["threads"]) == ("org/name", None)
    origins = llava("config", "show", "--origin", "--json").json
    assert origins["model"] == {"value": "org/name", "origin": f"project {project}"}


def test_user_config_lies_where_xdg_says(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "xdg" / "llava"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('device = "cpu"\n')
    ran = run("config", "show", "--origin", env={"XDG_CONFIG_HOME": str(tmp_path / "xdg")})
    assert f"device = cpu  (user {folder / 'config.toml'})" in ran.out


def test_broken_settings_are_a_usage_error_of_the_command(run: Run, tmp_path: Path) -> None:
    (tmp_path / "llava.toml").write_text("engine = ")
    ran = run("config", "show", "--json")
    assert (ran.code, ran.error["type"]) == (2, "UsageError")
