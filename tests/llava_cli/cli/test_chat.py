"""`llava chat` over a pipe: turns, every slash command, what ends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image as PIL

from llava_cli.cli.chatting.commands import COMMANDS
from tests.llava_cli.cli.conftest import InProcess, Ran

PROMISED = (
    "/image /images /drop /paste /regen /undo /edit /set /system /model /save /load /export /stats"
    " /clear /help /exit"
)


def chat(
    llava: InProcess, *lines: str, script: tuple[str, ...] = ("ok",), more: object = ()
) -> Ran:
    assert isinstance(more, tuple)
    text = "".join(f"{line}\n" for line in lines)
    return llava("chat", *more, script=script, stdin=text.encode())


def turns(llava: InProcess, index: int = -1) -> list[tuple[str, str]]:
    assert llava.engine is not None
    return [(m.role, m.text) for m in llava.engine.asked[index][0].messages]


def test_every_promised_command_is_there() -> None:
    assert list(COMMANDS) == PROMISED.split()


def test_one_turn_a_line_and_the_end_of_the_pipe_is_the_end(llava: InProcess) -> None:
    ran = chat(llava, "one", "", "two", script=("answer",))
    assert (ran.code, ran.out) == (0, "answer\nanswer\n")
    assert turns(llava) == [("user", "one"), ("assistant", "answer"), ("user", "two")]
    assert llava.engine is not None
    assert llava.engine.closed
    assert chat(llava).code == 0
    assert chat(llava, "no newline at the end").code == 0


def test_pictures_are_staged_and_go_with_the_next_message(
    llava: InProcess, picture: Path, tmp_path: Path
) -> None:
    other = tmp_path / "with blanks.png"
    PIL.new("RGB", (8, 9)).save(other)
    lines = (f"/image {other}", "/images", "what are they?", "/images", "and now?")
    ran = chat(llava, *lines, more=(picture,))
    assert ran.code == 0
    assert llava.engine is not None
    asked = [conversation for conversation, _ in llava.engine.asked]
    assert [i.source for i in asked[0].images] == [str(picture), str(other)]
    assert asked[1].images == asked[0].images
    assert asked[1].messages[-1].images == ()
    assert "staged 2. " in ran.err
    assert "2. " in ran.err
    assert "(8×9)" in ran.err


def test_a_line_that_is_only_a_picture_stages_it(llava: InProcess, picture: Path) -> None:
    assert chat(llava, f"'{picture}'", "what?").code == 0
    assert llava.engine is not None
    assert len(llava.engine.asked) == 1
    assert len(llava.engine.asked[0][0].images) == 1


def test_drop(llava: InProcess, picture: Path) -> None:
    ran = chat(
        llava, "/drop 1", "hi", f"/image {picture} {picture}", "/drop", "ho", more=(picture,)
    )
    assert ran.code == 0
    assert llava.engine is not None
    assert llava.engine.asked[-1][0].images == ()


def test_paste_takes_the_clipboard(
    llava: InProcess, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_cli import decode

    monkeypatch.setattr(decode, "clipboard_png", picture.read_bytes)
    chat(llava, "/paste", "what?")
    assert llava.engine is not None
    assert [i.source for i in llava.engine.asked[0][0].images] == ["@clip"]


def test_regen_asks_the_same_again(llava: InProcess) -> None:
    ran = chat(llava, "one", "/regen", "two")
    assert ran.out == "ok\nok\nok\n"
    assert turns(llava, 1) == [("user", "one")]
    assert turns(llava, 2) == [("user", "one"), ("assistant", "ok"), ("user", "two")]


def test_undo_takes_back_and_stages_the_pictures_again(llava: InProcess, picture: Path) -> None:
    chat(llava, "one", "/undo", "two", more=(picture,))
    assert turns(llava) == [("user", "two")]
    assert llava.engine is not None
    assert len(llava.engine.asked[-1][0].images) == 1
    thread = llava("logs", "show", "--thread", "--json").json
    assert [exchange["prompt"] for exchange in thread] == ["two"]


def test_edit_asks_the_last_question_changed(llava: InProcess) -> None:
    chat(llava, "zero", "one", "/edit two words")
    assert turns(llava) == [("user", "zero"), ("assistant", "ok"), ("user", "two words")]


def test_set(llava: InProcess) -> None:
    lines = ("/set temperature 0.7", "/set top-p=0.5", "/set seed 4", "/set stop END", "hi")
    ran = chat(llava, *lines, "/set")
    assert llava.engine is not None
    sampling = llava.engine.asked[0][1]
    found = (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop)
    assert found == (0.7, 0.5, 4, ("END",))
    assert "max_tokens = 512" in ran.err


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/set temperature -1", "temperature"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/imag x", "did you mean /image?"),
        ("/image", "which picture?"),
        ("/image missing.jpg", "no such file"),
        ("/drop", "no picture is staged"),
        ("/regen", "no answer yet"),
        ("/undo", "nothing to take back"),
        ("/edit", "nothing to take back"),
        ("/stats", "no answer yet"),
        ("/save", "which file?"),
        ("/load missing.json", "missing.json"),
        ("/export x.pdf", "write .md or .json"),
    ],
)
def test_what_goes_wrong_ends_a_pipe_with_its_code(llava: InProcess, line: str, word: str) -> None:
    ran = chat(llava, line, "never asked")
    assert ran.code in (1, 2, 4)
    assert word in ran.err
    assert "hint: " in ran.err
    assert llava.engine is None or llava.engine.asked == []


def test_system(llava: InProcess) -> None:
    ran = chat(llava, "/system", "one", "/system be rude", "two", more=("-s", "be brief"))
    assert turns(llava, 0)[0] == ("system", "be brief")
    assert turns(llava, 1)[0] == ("system", "be rude")
    assert "system: be brief" in ran.err


def test_model_switches_and_the_conversation_stays(llava: InProcess) -> None:
    ran = chat(llava, "one", "/model other/model", "two")
    assert ran.code == 0
    assert turns(llava) == [("user", "one"), ("assistant", "ok"), ("user", "two")]
    assert llava.engine is not None
    assert llava.engine.files.reference == "other/model"
    assert "other/model · gguf" in ran.err


def test_an_adapter_stays_with_the_model_that_it_was_given_for(llava: InProcess) -> None:
    more = ("--adapter", "lora", "--base", "b", "--vision-tower", "t")
    assert chat(llava, "one", more=more).code == 0
    assert llava.load_options["adapter"] == Path("lora")
    assert (llava.resolve_options["base"], llava.resolve_options["vision_tower"]) == ("b", "t")
    assert chat(llava, "one", "/model other/model", "two", more=more).code == 0
    assert llava.load_options["adapter"] is None
    assert (llava.resolve_options["base"], llava.resolve_options["vision_tower"]) == (None, None)


def test_save_and_load(llava: InProcess, picture: Path, tmp_path: Path) -> None:
    target = tmp_path / "talk.json"
    chat(llava, "one", f"/save {target}", more=(picture, "-s", "be brief"))
    document = json.loads(target.read_text())
    assert document["model"] == "llava-demo"
    assert [m["role"] for m in document["messages"]] == ["system", "user", "assistant"]
    assert "data" not in json.dumps(document)
    chat(llava, f"/load {target}", "two", f"/save {target}")
    assert turns(llava) == [
        *(("system", "be brief"), ("user", "one"), ("assistant", "ok"), ("user", "two")),
    ]
    assert len(json.loads(target.read_text())["messages"]) == 5
    ran = chat(llava, "x", f"/save {target}")
    assert (ran.code, "is there already" in ran.err) == (2, True)


def test_a_picture_without_a_file_is_saved_with_the_conversation(
    llava: InProcess, tmp_path: Path, picture: Path
) -> None:
    import base64

    url = "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
    chat(llava, "one", f"/save {tmp_path}/a.json", more=(url,))
    chat(llava, f"/load {tmp_path}/a.json", "two")
    assert llava.engine is not None
    assert llava.engine.asked[-1][0].images[0].open().size == (40, 30)


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"llava_conversation": 9}'])
def test_what_is_no_conversation_is_not_loaded(llava: InProcess, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert chat(llava, f"/load {tmp_path}/x.json").code == 1


def test_export(llava: InProcess, picture: Path, tmp_path: Path) -> None:
    lines = ("one", f"/export {tmp_path}/talk.md", f"/export {tmp_path}/talk.json")
    assert chat(llava, *lines, more=(picture,), script=("a **red** square",)).code == 0
    text = (tmp_path / "talk.md").read_text()
    assert f"![photo.jpg](<{picture}>)" in text
    assert "one\n\n**assistant**\n\na **red** square" in text
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][1]["role"] == "assistant"


def test_stats_clear_help_exit(llava: InProcess, picture: Path) -> None:
    lines = ("one", "/stats", "/clear", "two", "/help", "/exit", "never")
    ran = chat(llava, *lines, more=(picture,))
    assert "tokens/s" in ran.err
    assert turns(llava) == [("user", "two")]
    assert all(command.usage in ran.err for command in COMMANDS.values())
    assert ran.out == "ok\nok\n"


def test_two_slashes_begin_a_text(llava: InProcess) -> None:
    chat(llava, "//set is a command?", "/usr/bin is a folder?")
    assert turns(llava)[0] == ("user", "/set is a command?")
    assert turns(llava)[-1] == ("user", "/usr/bin is a folder?")


def test_json_gives_a_line_for_each_answer(llava: InProcess) -> None:
    ran = chat(llava, "one", "two", more=("--json",))
    assert [json.loads(line)["text"] for line in ran.out.splitlines()] == ["ok", "ok"]


def test_the_history_holds_it_as_one_conversation(llava: InProcess, picture: Path) -> None:
    chat(llava, "one", "/regen", "two", more=(picture,))
    thread = llava("logs", "show", "--thread", "--json").json
    assert [exchange["prompt"] for exchange in thread] == ["one", "two"]
    chat(llava, "three", more=("-c",))
    assert turns(llava)[-3:] == [("user", "two"), ("assistant", "ok"), ("user", "three")]
    chat(llava, "four", more=("--no-log",))
    assert len(llava("logs", "list", "--json").json) == 3


def test_wrong_pictures_are_said_before_a_model_is_loaded(llava: InProcess) -> None:
    ran = chat(llava, more=("missing.jpg",))
    assert (ran.code, llava.engine) == (4, None)
