"""`llava ask`, its engine a fake: arguments, documents, what reaches engine and stdout."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from PIL import Image as PIL

from llava_cli.engines.base import Sampling
from tests.llava_cli.cli.conftest import InProcess, Run

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def asked(llava: InProcess) -> tuple[str, list[str]]:
    """The question and the sources of its pictures, as the engine got them."""
    assert llava.engine is not None
    message = llava.engine.asked[-1][0].messages[-1]
    return message.text, [image.source for image in message.images]


# ---- which argument is what


def test_picture_then_question(llava: InProcess, picture: Path) -> None:
    ran = llava("ask", picture, "what is it?", script=["a ", "red ", "square"])
    assert (ran.code, ran.out) == (0, "a red square\n")
    assert asked(llava) == ("what is it?", [str(picture)])


def test_question_then_picture(llava: InProcess, picture: Path) -> None:
    assert llava("ask", "what is it?", picture).code == 0
    assert asked(llava) == ("what is it?", [str(picture)])


def test_several_pictures_in_order(llava: InProcess, picture: Path) -> None:
    other = picture.with_name("other.png")
    PIL.new("RGB", (5, 5)).save(other)
    llava("ask", "-i", other, picture, DATA_URL, "compare")
    text, sources = asked(llava)
    assert (text, sources[:2]) == ("compare", [str(other), str(picture)])
    assert len(sources) == 3


def test_pattern_gives_all_pictures(llava: InProcess, picture: Path) -> None:
    PIL.new("RGB", (5, 5)).save(picture.with_name("a.jpg"))
    llava("ask", f"{picture.parent}/*.jpg", "compare")
    assert [Path(source).name for source in asked(llava)[1]] == ["a.jpg", "photo.jpg"]


def test_no_picture_is_a_question_in_words(llava: InProcess) -> None:
    ran = llava("ask", "--json", "how are you?")
    assert (ran.code, ran.json["images"]) == (0, [])
    assert asked(llava) == ("how are you?", [])


def test_picture_on_stdin(llava: InProcess) -> None:
    assert llava("ask", "-", "what is it?", stdin=PNG).code == 0
    assert asked(llava) == ("what is it?", ["-"])


@pytest.mark.parametrize("form", [["-"], ["-p", "-"], ["--prompt=-"]])
def test_question_on_stdin(llava: InProcess, picture: Path, form: list[str]) -> None:
    assert llava("ask", picture, *form, stdin="what is thät?\n".encode()).code == 0
    assert asked(llava) == ("what is thät?", [str(picture)])


def test_prompt_option_frees_a_question_that_looks_like_a_file(
    llava: InProcess, picture: Path
) -> None:
    assert llava("ask", picture, "-p", "describe.jpg").code == 0
    assert asked(llava) == ("describe.jpg", [str(picture)])


def test_question_that_begins_with_a_dash(llava: InProcess, picture: Path) -> None:
    assert llava("ask", "--", picture, "-5 degrees?").code == 0
    assert asked(llava)[0] == "-5 degrees?"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "missing"),
        ([""], "empty"),
        (["  \n"], "empty"),
        (["-p", ""], "empty"),
        (["what", "is", "this"], "more than one"),
        (["-", "-"], "only once"),
        (["-i", "-", "-"], "only once"),
        (["--each", "what?"], "at least one picture"),
        (["what?", "--stop", ""], "--stop"),
        (["what?", "--temperature", "nan"], "temperature"),
        (["what?", "--temperature", "-1"], "temperature"),
        (["what?", "--top-p", "0"], "top-p"),
        (["what?", "--max-tokens", "0"], "max-tokens"),
        (["what?", "--seed", "x"], "seed"),
        (["what?", "--markdown", "perhaps"], "markdown"),
        (["what?", "--background", "nocolour"], "nocolour"),
        (["what?", "--engine", "gguff"], "gguff"),
        (["what?", "--device", "gpu"], "gpu"),
        (["what?", "--threads", "0"], "threads"),
        (["what?", "--prompt-format", "vicuna"], "vicuna_v1"),
        (["what?", "--model", " "], "empty"),
        (["what?", "--temprature", "1"], "--temperature"),
    ],
)
def test_usage_errors_exit_2_before_any_model(
    llava: InProcess, arguments: list[str], word: str
) -> None:
    ran = llava("ask", "--json", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert word in ran.error["message"] + ran.error["hint"]
    assert ran.error["type"] == "UsageError"
    assert ran.error["hint"]
    assert llava.engine is None


def test_empty_stdin_question_is_a_usage_error(llava: InProcess, picture: Path) -> None:
    assert llava("ask", picture, "-", stdin=b"\n").code == 2


def test_binary_stdin_question_is_a_usage_error(llava: InProcess, picture: Path) -> None:
    assert llava("ask", picture, "-", stdin=b"\xff\xfe\x00").code == 2


# ---- what the engine gets


def test_sampling_reaches_the_engine(llava: InProcess) -> None:
    options = "--temperature 0.7 --top-p 0.9 --top-k 40 --min-p 0.05 --repeat-penalty 1.1"
    more = "--seed 7 --max-tokens 9 --stop A --stop B --top-logprobs 3"
    llava("ask", "hi", *options.split(), *more.split())
    assert llava.engine is not None
    assert llava.engine.asked[-1][1] == Sampling(0.7, 0.9, 40, 0.05, 1.1, 7, 9, ("A", "B"), 3)


def test_default_is_greedy(llava: InProcess) -> None:
    llava("ask", "hi")
    assert llava.engine is not None
    assert llava.engine.asked[-1][1] == Sampling()


def test_model_options_reach_resolver_and_engine(llava: InProcess) -> None:
    options = "-m org/name --mmproj p.gguf --engine gguf --device cuda:1 --threads 3 --offline"
    llava("ask", "hi", *options.split(), "--prompt-format", "vicuna_v1")
    wanted = {"mmproj": "p.gguf", "engine": "gguf", "offline": True}
    assert llava.resolve_options.items() >= wanted.items()
    expected = {"engine": "gguf", "device": "cuda:1", "threads": 3, "prompt_format": "vicuna_v1"}
    assert llava.load_options.items() >= expected.items()
    llava("ask", "hi", "--quantize", "4bit", "--adapter", "lora")
    assert llava.load_options.items() >= {"quantize": "4bit", "adapter": Path("lora")}.items()


def test_system_and_prefill_are_turns(llava: InProcess) -> None:
    ran = llava("ask", "hi", "-s", "Be brief.", "--prefill", "It is", script=[" red", "."])
    assert llava.engine is not None
    roles = [(m.role, m.text) for m in llava.engine.asked[-1][0].messages]
    assert roles == [("system", "Be brief."), ("user", "hi"), ("assistant", "It is")]
    assert ran.out == "It is red.\n"
    assert llava("ask", "hi", "--prefill", "It is", "--json", script=[" red"]).json["text"] == (
        "It is red"
    )


def test_background_is_laid_under_transparency(llava: InProcess, tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    PIL.new("RGBA", (2, 2), (0, 0, 0, 0)).save(path)
    llava("ask", path, "hi", "--background", "#00ff00")
    assert llava.engine is not None
    image = llava.engine.asked[-1][0].images[0]
    assert image.open().getpixel((0, 0)) == (0, 255, 0)


def test_engine_is_closed_even_when_it_fails(llava: InProcess) -> None:
    ran = llava("ask", "hi", script=[])
    assert ran.code == 0
    assert llava.engine is not None
    assert llava.engine.closed


# ---- what is printed


def test_json_is_the_promised_object(llava: InProcess, picture: Path) -> None:
    ran = llava("ask", "--json", picture, "hi", script=["a", "b"])
    assert ran.json == {
        "text": "ab",
        "finish_reason": "stop",
        "model": "llava-demo",
        "engine": "gguf",
        "device": "cpu",
        "prompt_format": "vicuna_v1",
        "images": [{"source": str(picture), "width": 40, "height": 30, "tokens": 16}],
        "usage": {"prompt_tokens": 5, "image_tokens": 16, "completion_tokens": 2},
        "timing": {
            "load_s": 0.1,
            "image_s": 0.2,
            "prefill_s": 0.3,
            "ttft_s": 0.5,
            "decode_s": 0.5,
            "tokens_per_s": 4.0,
        },
        "cache": {"image": "off", "prefix_tokens_reused": 0},
    }


def test_top_logprobs_in_json(llava: InProcess) -> None:
    found = llava("ask", "--json", "hi", "--top-logprobs", "2").json["first_token"]
    assert found == [
        {"id": 0, "text": "t0", "logprob": 0.0},
        {"id": 1, "text": "t1", "logprob": -0.5},
    ]


def test_top_logprobs_without_json_go_to_stderr(llava: InProcess) -> None:
    ran = llava("ask", "hi", "--top-logprobs", "2", "-q")
    assert ran.out == "ok\n"
    assert "-0.5000" in ran.err


def test_stats_go_to_stderr(llava: InProcess, picture: Path) -> None:
    ran = llava("ask", picture, "hi", "--stats", "-q")
    assert ran.out == "ok\n"
    assert "40×30, 16 tokens" in ran.err
    assert "tokens/s" in ran.err


def test_each_gives_json_lines_in_the_order_of_the_pictures(
    llava: InProcess, picture: Path
) -> None:
    for index in range(3):
        PIL.new("RGB", (10 + index, 5)).save(picture.with_name(f"{index}.png"))
    ran = llava("ask", f"{picture.parent}/*.png", "hi", "--each", script=["x"])
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["images"][0]["width"] for line in lines] == [10, 11, 12]
    assert [line["text"] for line in lines] == ["x", "x", "x"]


def test_one_bad_picture_of_each_stops_before_the_model(llava: InProcess, picture: Path) -> None:
    bad = picture.with_name("bad.png")
    bad.write_bytes(PNG[:40])
    ran = llava("ask", picture, bad, "hi", "--each")
    assert (ran.code, ran.out) == (4, "")
    assert llava.engine is None


def test_text_on_a_pipe_is_exact(llava: InProcess) -> None:
    nasty = "\x1b[31m[/INST] [red] **x** \x07\u202e\r\n<b>"
    assert llava("ask", "hi", script=[nasty]).out == nasty + "\n"
    assert llava("ask", "hi", script=[nasty], stdin=b"").code == 0


def test_text_in_json_is_exact(llava: InProcess) -> None:
    nasty = "\x1b[31m[/INST] [red] \x00\x07\u202e\r\n\ud83d <b>"
    ran = llava("ask", "--json", "hi", script=[nasty])
    assert ran.json["text"] == nasty
    assert not set(ran.out) & set("\x1b\x00\x07\u202e")


def test_an_answer_that_ends_its_line_gets_no_second_end(llava: InProcess) -> None:
    assert llava("ask", "hi", script=["one\n"]).out == "one\n"


def test_markdown_always_renders_without_escapes_on_a_pipe(llava: InProcess) -> None:
    ran = llava("ask", "hi", "--markdown", "always", script=["**bold**\n\n- a"])
    assert "**" not in ran.out
    assert "• a" in ran.out
    assert "\x1b" not in ran.out


def test_bundled_model_says_what_it_is(llava: InProcess) -> None:
    err = llava("ask", "hi").err
    assert len(err.splitlines()) == 1
    assert "only drawn shapes" in err
    assert "llava ask -m " in err


@pytest.mark.parametrize("more", [["-q"], ["-m", "org/name"]])
def test_no_note_when_quiet_or_when_a_model_is_named(llava: InProcess, more: list[str]) -> None:
    assert llava("ask", "hi", *more).err == ""


def test_verbose_names_model_engine_and_device(llava: InProcess) -> None:
    assert "org/name: gguf on cpu" in llava("ask", "hi", "-v", "-m", "org/name").err


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_common_options_stand_anywhere(llava: InProcess, place: int) -> None:
    arguments = ["ask", "hi", "--seed", "1"]
    arguments.insert(place, "--json")
    assert llava(*arguments).json["text"] == "ok"


# ---- in a process of its own


def test_a_process_answers(run: Run, picture: Path) -> None:
    ran = run("ask", picture, "hi", "-q", script=["ä", "東"])
    assert (ran.code, ran.out, ran.err) == (0, "ä東\n", "")
