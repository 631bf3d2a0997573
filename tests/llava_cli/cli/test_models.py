"""pull, ls, show, rm, verify, alias, and `ask` of a model that is not on this disk yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import llava_cli.demo
from llava_cli.cli import main
from llava_cli.models import aliases, cache
from llava_cli.models.hub import HubModel, find
from tests import hub_server
from tests.hub_server import Fault, Hub, Repo
from tests.llava_cli.cli.conftest import Ran, Run

DEMO = Path(llava_cli.demo.__file__).parent
NAMES = ("llava-demo-Q8_0.gguf", "mmproj-llava-demo-Q8_0.gguf")
Llava = Callable[..., Ran]


def demo_files() -> dict[str, bytes]:
    card = b"---\nlicense: mit\n---\n# A model\n"
    return {**{name: (DEMO / name).read_bytes() for name in NAMES}, "README.md": card}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The bundled model, as somebody's repository."""
    return demo_files()


@pytest.fixture
def server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes]
) -> Iterator[Hub]:
    with hub_server.attached(monkeypatch, tmp_path) as running:
        running.repos["org/name"] = Repo(dict(files), license="mit")
        yield running


@pytest.fixture
def llava(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Llava:
    """The command line in this process, against the real engines and the loopback Hub."""
    monkeypatch.setattr(aliases, "user_file", lambda: tmp_path / "config" / "aliases.toml")

    def run(*arguments: str) -> Ran:
        hook = sys.excepthook
        try:
            code = main(list(arguments))
        finally:
            sys.excepthook = hook
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


def test_pull_then_ls_show_verify_rm(server: Hub, llava: Llava) -> None:
    pulled = llava("pull", "org/name", "--json")
    assert (pulled.code, pulled.err) == (0, "")
    assert pulled.json["fetched_bytes"] == pulled.json["bytes"] > 5e6
    assert {f["name"] for f in pulled.json["files"] if f["fetched"]} == {*NAMES, "README.md"}
    assert Path(pulled.json["path"]).name == NAMES[0]
    assert Path(pulled.json["mmproj"]).name == NAMES[1]
    (listed,) = llava("ls", "--json").json["models"]
    assert (listed["name"], listed["format"], listed["quants"]) == ("org/name", "gguf", ["Q8_0"])
    assert "org/name" in llava("ls").out
    shown = llava("show", "org/name", "--json").json
    assert shown["on_disk"] is True
    assert shown["license"] == "mit"
    assert shown["quantization"] == "Q8_0"
    assert shown["image_tokens"] == 100
    assert shown["prompt_format"] == "vicuna_v1"
    assert shown["vision_tower"]["image_px"] == 160
    assert shown["bytes"] == sum(file["bytes"] for file in shown["files"])
    verified = llava("verify", "org/name", "--json").json
    assert verified["ok"] and {f["status"] for f in verified["files"]} == {"ok"}
    removed = llava("rm", "org/name", "-y", "--json").json
    assert removed["freed_bytes"] == pulled.json["bytes"]
    assert llava("ls", "--json").json["models"] == []
    assert llava("show", "org/name", "--offline").code == 3


def test_a_second_pull_checks_and_fetches_nothing(server: Hub, llava: Llava) -> None:
    assert llava("pull", "org/name", "-q").err == ""
    server.requests.clear()
    again = llava("pull", "org/name")
    assert (again.code, again.out) == (0, "")
    assert "whole" in again.err
    assert server.sent() == []


def test_pull_says_what_it_fetches_line_by_line_on_a_pipe(server: Hub, llava: Llava) -> None:
    said = llava("pull", "org/name")
    assert said.out == ""
    assert [line.split(":")[0] for line in said.err.splitlines()] == [
        *NAMES,
        "README.md",
        "org/name",
    ]
    assert "\x1b" not in said.err and "\r" not in said.err


def test_dry_run_fetches_nothing_and_says_how_much(server: Hub, llava: Llava) -> None:
    shown = llava("pull", "org/name", "--dry-run")
    assert shown.code == 0 and shown.out.count("fetch") == 3
    planned = llava("pull", "org/name", "--dry-run", "--json").json
    assert planned["path"] is None and planned["missing_bytes"] == planned["bytes"]
    assert server.sent() == []


def test_the_quantisation_that_is_asked_for_and_its_mmproj(
    server: Hub, llava: Llava, files: dict[str, bytes]
) -> None:
    server.repos["org/many"] = Repo(
        {
            "m-Q4_K_M.gguf": files[NAMES[0]],
            "m-Q8_0.gguf": files[NAMES[0]] + b"8",
            "mmproj-m-f16.gguf": files[NAMES[1]],
            "pytorch_model.bin": b"pickle" * 1000,
        }
    )
    for arguments in (["org/many:q8_0"], ["org/many", "--quant", "Q8_0"]):
        names = {f["name"] for f in llava("pull", *arguments, "--json").json["files"]}
        assert names == {"m-Q8_0.gguf", "mmproj-m-f16.gguf"}
    assert llava("pull", "org/many:Q4_K_M", "-q").code == 0
    missing = llava("pull", "org/many:Q2_K")
    assert missing.code == 3 and "it has: Q4_K_M, Q8_0" in missing.err
    assert llava("rm", "org/many:Q8_0", "-y", "-q").code == 0
    (listed,) = llava("ls", "--json").json["models"]
    assert listed["quants"] == ["Q4_K_M"]
    assert find(HubModel("org/many", quant="Q4_K_M")) is not None


def test_safetensors_are_taken_and_pickles_never(server: Hub, llava: Llava) -> None:
    server.repos["org/hf"] = Repo(
        {
            "config.json": b"{}",
            "model-00001-of-00001.safetensors": b"s" * 5000,
            "model.safetensors.index.json": b"{}",
            "tokenizer.json": b"{}",
            "pytorch_model.bin": b"pickle" * 1000,
            "original/consolidated.pth": b"pickle" * 1000,
            "training_args.bin": b"pickle",
            "onnx/model.onnx": b"o" * 5000,
        }
    )
    names = [f["name"] for f in llava("pull", "org/hf", "--json").json["files"]]
    assert sorted(names) == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    server.repos["org/pickle"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"x" * 5000})
    refused = llava("pull", "org/pickle")
    assert refused.code == 3 and "pickle" in refused.err and "hint:" in refused.err


def test_a_damaged_file_is_found_by_verify_and_mended_by_pull(server: Hub, llava: Llava) -> None:
    path = Path(llava("pull", "org/name", "--json").json["path"])
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = llava("verify", "org/name")
    assert found.code == 3
    assert f"damaged  {NAMES[0]}" in found.out
    assert "llava pull org/name" in found.err
    mended = llava("pull", "org/name", "--json").json
    assert [f["name"] for f in mended["files"] if f["fetched"]] == [NAMES[0]]
    assert path.read_bytes() == content
    assert llava("verify", "org/name").code == 0


def test_files_of_ones_own_are_verified_and_shown(llava: Llava, tmp_path: Path) -> None:
    path = str(DEMO / NAMES[0])
    assert llava("verify", path, "--json").json["ok"]
    assert llava("show", path, "--json").json["format"] == "gguf"
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((DEMO / NAMES[0]).read_bytes()[:100_000])
    assert llava("verify", str(cut)).code == 3


@pytest.mark.parametrize("engine", ["gguf", "torch"])
def test_the_bundled_model_shows_the_same_facts_in_both_forms(llava: Llava, engine: str) -> None:
    shown = llava("show", "--engine", engine, "--json").json
    assert shown["image_tokens"] == 100
    assert shown["prompt_format"] == "vicuna_v1"
    assert (shown["vision_tower"]["image_px"], shown["vision_tower"]["patch_px"]) == (160, 16)
    assert shown["memory_bytes"] > shown["parameters"]


@pytest.mark.parametrize("command", [["rm", "-y"], ["pull"]])
@pytest.mark.parametrize(
    ("reference", "code", "said"),
    [
        ("llava-demo", 2, "comes with llava"),
        ("PATH", 2, "a file or folder of this disk"),
        ("llava-1.5-7", 3, "did you mean llava-1.5-7b?"),
        ("no such thing", 3, "llava alias"),
    ],
)
def test_what_is_not_of_the_hub_is_left_alone(
    llava: Llava, tmp_path: Path, command: list[str], reference: str, code: int, said: str
) -> None:
    (tmp_path / "mine").mkdir()
    if reference == "PATH":
        reference = str(tmp_path / "mine")
    ran = llava(*command, reference)
    assert ran.code == code and said in ran.err
    assert (tmp_path / "mine").is_dir()


def test_rm_without_anybody_to_ask_needs_yes(server: Hub, llava: Llava) -> None:
    llava("pull", "org/name", "-q")
    for more in ([], ["--no-input"], ["--json"]):
        ran = llava("rm", "org/name", *more)
        assert ran.code == 2 and "-y" in ran.err
    assert cache.snapshot("org/name", None) is not None


def test_ask_fetches_what_is_missing_after_saying_how_big_it_is(
    server: Hub, llava: Llava, files: dict[str, bytes]
) -> None:
    arguments = ["ask", "hi", "-m", "org/name", "--max-tokens", "2"]
    refused = llava(*arguments, "--no-input", "--json")
    assert refused.code == 3
    assert "5.5 MB" in refused.error["message"]
    assert refused.error["hint"] == "get it first: llava pull org/name"
    assert server.sent() == []
    answered = llava(*arguments)
    assert answered.code == 0 and answered.out
    assert answered.err.startswith("org/name is not on this disk: 5.5 MB to fetch from org/name")
    server.requests.clear()
    assert llava(*arguments, "--no-input", "-q").code == 0
    assert server.requests == []


def test_an_alias_is_its_repository_with_what_the_files_do_not_say(
    server: Hub, llava: Llava, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    entry = aliases.package_aliases()["llava-1.5-7b"]
    assert entry.gguf and entry.text and entry.mmproj and entry.hf
    server.repos[entry.gguf] = Repo(
        {entry.text: files[NAMES[0]], entry.mmproj: files[NAMES[1]], "other-Q2_K.gguf": b"x" * 2000}
    )
    shown = llava("show", "llava-1.5-7b", "--json").json
    assert (shown["on_disk"], shown["repo"]) == (False, entry.gguf)
    assert llava("pull", "llava-1.5-7b", "-q").code == 0
    assert llava("show", "llava-1.5-7b", "--json").json["on_disk"] is True
    assert llava("ask", "hi", "-m", "llava-1.5-7b", "--max-tokens", "1", "-q").code == 0


def test_ones_own_aliases(server: Hub, llava: Llava) -> None:
    assert llava("alias", "mine", str(DEMO / NAMES[0])).code == 0
    assert llava("alias", "theirs", "org/name", "-q").err == ""
    listed = {entry["name"]: entry for entry in llava("alias", "--json").json}
    assert listed["theirs"] == {"name": "theirs", "origin": "user", "reference": "org/name"}
    assert listed["llava-1.5-7b"]["license"] == "llama2"
    assert llava("ask", "hi", "-m", "mine", "--max-tokens", "1", "-q").code == 0
    assert llava("pull", "theirs", "-q").code == 0
    assert "mine" in llava("alias").out
    assert llava("alias", "demo", "llava-demo").code == 0
    assert llava("show", "demo", "--json").json["image_tokens"] == 100
    assert llava("alias", "mine", "--remove").code == 0
    assert llava("alias", "mine", "--remove").code == 2
    assert llava("ask", "hi", "-m", "mine").code == 3
    assert llava("alias", "bad/name", "x").code == 2
    assert llava("alias", "me", "me").code == 2


def test_a_broken_alias_file_is_named(llava: Llava) -> None:
    path = aliases.user_file()
    path.parent.mkdir(parents=True)
    for text in ("broken = ", "name = 3"):
        path.write_text(text)
        ran = llava("ask", "hi", "-m", "org/name")
        assert ran.code == 2 and str(path) in ran.err


def test_every_package_alias_is_complete() -> None:
    from llava_cli.prompts import FORMATS

    for name, entry in aliases.package_aliases().items():
        assert aliases.lookup(name) is not None
        assert entry.gguf or entry.hf
        assert entry.engines and set(entry.engines) <= {"gguf", "torch"}
        assert entry.about and entry.license and entry.known_from
        assert all(entry.memory_gb[engine] > 0 for engine in entry.engines)
        assert ("gguf" in entry.engines) <= (entry.gguf is not None)
        assert ("torch" in entry.engines) <= (entry.hf is not None)
        assert entry.prompt_format is None or entry.prompt_format in FORMATS


def test_an_unreachable_hub_is_two_lines_and_nothing_of_its_client(
    run: Run, tmp_path: Path
) -> None:
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    for command in (["ask", "hi", "-m", "org/name"], ["pull", "org/name"], ["show", "org/name"]):
        ran = run(*command, env=env)
        assert (ran.code, ran.out) == (3, "")
        lines = ran.err.splitlines()
        assert len(lines) == 2, ran.err
        assert lines[0].startswith("error: the Hub (http://127.0.0.1:9) cannot be reached")
        assert lines[1].startswith("hint: ")


def test_a_broken_hub_is_two_lines_and_nothing_of_its_client(run: Run, tmp_path: Path) -> None:
    with hub_server.running() as hub:
        hub.faults = [Fault(".", status=503, times=99)]
        ran = run("pull", "org/name", env=hub_server.environment(hub, tmp_path))
    assert ran.code == 3
    assert len(ran.err.splitlines()) == 2, ran.err
