"""--schema, --choices and --yes-no on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from llava_cli.cli.constraint import fields_schema
from llava_cli.engines.base import Sampling
from llava_cli.errors import UsageError
from tests.llava_cli.cli.conftest import InProcess


def sampling(llava: InProcess) -> Sampling:
    assert llava.engine is not None
    return llava.engine.asked[-1][1]


def test_choices_and_yes_no_reach_the_engine(llava: InProcess, picture: Path) -> None:
    llava("ask", picture, "what?", "--choices", "red, dark blue")
    assert sampling(llava).choices == (("red",), ("dark blue",))
    llava("ask", picture, "what?", "--yes-no")
    assert [forms[0] for forms in sampling(llava).choices] == ["yes", "no"]


def test_a_schema_is_a_file_or_json_or_fields(
    llava: InProcess, picture: Path, tmp_path: Path
) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}')
    for given in (str(path), '{"type": "integer"}'):
        ran = llava("ask", picture, "what?", "--schema", given, script=["5"])
        assert (ran.code, ran.out) == (0, "5\n")
        assert json.loads(sampling(llava).schema or "") == {"type": "integer"}
    llava("ask", picture, "what?", "--schema", "name, age int", script=["{}"])
    assert json.loads(sampling(llava).schema or "") == fields_schema("name, age int")


def test_fields_are_read_as_llm_reads_them() -> None:
    found = fields_schema("name: of the animal\nage int\ntall bool: or not")
    assert found == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "of the animal"},
            "age": {"type": "integer"},
            "tall": {"type": "boolean", "description": "or not"},
        },
        "required": ["name", "age", "tall"],
    }
    for bad in ("", ",", "age integr", "a b c", "1a", "a, a"):
        with pytest.raises(UsageError):
            fields_schema(bad)


@pytest.mark.parametrize(
    "options",
    [
        ["--choices", "red"],
        ["--choices", "red,,blue"],
        ["--choices", "red,red"],
        ["--choices", "a,b", "--yes-no"],
        ["--schema", "name", "--yes-no"],
        ["--schema", ""],
        ["--schema", "no.json"],
        ["--schema", "{not json"],
        ["--schema", "[1]"],
        ["--schema", '{"type": "foo"}'],
        ["--schema", "name strr"],
        ["--schema", "name", "--prefill", "{"],
    ],
    ids=str,
)
def test_mistakes_exit_2_before_any_model(
    llava: InProcess, picture: Path, options: list[str]
) -> None:
    ran = llava("ask", picture, "what?", "--json", *options)
    assert (ran.code, ran.out) == (2, "") and llava.engine is None
    assert ran.error["hint"]


def test_an_answer_that_was_cut_off_is_an_error_not_half_a_document(
    llava: InProcess, picture: Path
) -> None:
    ran = llava("ask", picture, "what?", "--schema", "name", script=['{"na'])
    assert (ran.code, ran.out) == (1, "")
    assert "--max-tokens" in ran.err
