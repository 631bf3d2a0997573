"""Endpoints that keep to the protocol in their own way, or to none: what each of them costs."""

from __future__ import annotations

import gzip
import json
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.llava_train.datagen.conftest import Generate, read_lines
from tests.llava_train.datagen.server import (
    CONVERSATION,
    DETAIL,
    Reply,
    answer_for,
    serving,
    well_behaved,
)


def completion(content: Any, **more: Any) -> bytes:
    """A chat completion with this content."""
    return json.dumps({"choices": [{"message": {"content": content}, **more}]}).encode()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(lambda text: Reply(text, usage=None), id="no-usage"),
        pytest.param(lambda text: Reply(text, usage=(0, 0)), id="usage-of-nothing"),
        pytest.param(lambda text: Reply(body=completion(text)), id="no-finish-reason"),
        pytest.param(
            lambda text: Reply(body=completion(text, finish_reason=None)), id="finish-null"
        ),
        pytest.param(
            lambda text: Reply(body=completion([{"type": "text", "text": text}])), id="parts"
        ),
        pytest.param(lambda text: Reply(body=b"\xef\xbb\xbf" + completion(text)), id="byte-order"),
        pytest.param(
            lambda text: Reply(
                body=gzip.compress(completion(text)), headers={"Content-Encoding": "gzip"}
            ),
            id="gzip",
        ),
    ],
)
def test_an_unusual_answer_is_understood_and_counted(generate: Generate, reply: Any) -> None:
    with serving(lambda body, times: reply(answer_for(body))) as server:
        code, document, err = generate(server, "--samples", "4")
    assert (code, sum(document["written"].values())) == (0, 4), err
    assert len(server.asked) == 4
    spent = document["spent"]
    assert spent["prompt_tokens"] > 400 and spent["completion_tokens"] > 4  # estimates
    assert spent["requests_lost_that_may_have_been_billed"] == 0


@pytest.mark.parametrize("pause", [0.0, 2.0])
def test_a_pause_may_be_named_by_a_date(generate: Generate, pause: float) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], before: int) -> Reply:
        times.append(time.time())
        if before:
            return well_behaved(body, before)
        date = formatdate(times[0] + pause, usegmt=True)  # of whole seconds
        return Reply(status=429, headers={"Retry-After": date})

    with serving(script) as server:
        code, document, err = generate(server, "--samples", "1")
    assert (code, len(server.asked), document["missing"]) == (0, 2, 0), err
    assert times[1] - times[0] >= pause - 1


def test_an_answer_without_end_is_given_up_at_once(generate: Generate, tmp_path: Path) -> None:
    with serving(lambda body, times: Reply("word " * 2_000_000)) as server:
        code, document, _ = generate(server, "--samples", "2")
    assert (code, document["missing"], len(server.asked)) == (5, 2, 2)
    assert "larger than" in read_lines(tmp_path / "out" / "missing.jsonl")[0]["why"]


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("detail", f"<think>A dog, I suppose.</think>\n{DETAIL}", "special_token"),
        ("conversation", f"<think>\nWell.\n</think>\n{CONVERSATION}", "malformed"),
        ("conversation", "Answer:\nA dog.\n===\nQuestion:\nWhat is it?", "not_alternating"),
        ("conversation", f"{CONVERSATION}\n===\n{CONVERSATION}", "repeated_question"),
        ("reasoning", CONVERSATION, "wrong_number_of_turns"),
        ("detail", f"As the second caption says: {DETAIL}", "source_mentioned"),
        ("detail", f"Its BOUNDING-BOXES overlap. {DETAIL}", "source_mentioned"),
        ("detail", "word " * 100_000, "too_long"),
    ],
)
def test_what_nobody_should_learn_is_kept_apart_and_paid_once(
    generate: Generate, tmp_path: Path, kind: str, text: str, reason: str
) -> None:
    with serving(lambda body, times: Reply(text)) as server:
        code, document, _ = generate(server, "--kind", kind, "--samples", "2")
        again, _, _ = generate(server, "--kind", kind, "--samples", "2")
    assert (code, again, len(server.asked)) == (0, 0, 2)
    assert (document["written"], document["rejected"]) == ({}, {reason: 2})
    rows = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [row["answer"] for row in rows] == [text] * 2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "This model's maximum context length is 2048 tokens. However, you requested 3000."),
        (400, "request (2788 tokens) exceeds the available context size (2048 tokens)"),
        (413, "prompt is too long: 210000 tokens > 200000 maximum"),
        (500, "the input exceeds the context window"),
    ],
)
def test_a_kind_that_never_fits_ends_the_run_with_the_remedy(
    generate: Generate, status: int, said: str
) -> None:
    def script(body: dict[str, Any], times: int) -> Reply:
        boxes = "\n\n" in body["messages"][-1]["content"]
        return Reply(said, status=status) if boxes else well_behaved(body, times)

    with serving(script) as server:
        code, document, err = generate(server, "--concurrency", "2")
        error = json.loads(err)["error"]
        assert (code, document) == (1, None)
        assert "requests for reasoning are too long" in error["message"]
        assert said[:30] in error["message"] and "--few-shot 0" in error["hint"]
        assert set(server.seen.values()) == {1}  # asked once: they would be as long again
        answered = sum(server.answered.values())
        code, document, _ = generate(server, "--kind", "conversation")
    assert (code, document["written"]) == (0, {"conversation": 10})
    assert document["answered_now"] == 10 - answered


def test_single_pictures_that_do_not_fit_are_missing_and_no_more(
    generate: Generate, tmp_path: Path
) -> None:
    def script(body: dict[str, Any], times: int) -> Reply:
        long = "Picture 0," not in body["messages"][-1]["content"]
        return Reply("context_length_exceeded", status=400) if long else well_behaved(body, times)

    with serving(script) as server:
        code, document, err = generate(server, "--kind", "reasoning", "--concurrency", "1")
    assert (code, document["written"], document["missing"]) == (5, {"reasoning": 1}, 9)
    assert "9 of 10 samples have no answer: their requests are too long" in err
    assert len(read_lines(tmp_path / "out" / "missing.jsonl")) == len(server.asked) - 1 == 9


def test_fewer_worked_examples_are_another_version_of_the_texts(
    generate: Generate, tmp_path: Path
) -> None:
    def digests() -> set[str]:
        return {row["prompts"] for row in read_lines(tmp_path / "out" / "instruct.jsonl")}

    with serving() as server:
        assert generate(server, "--samples", "6")[0] == 0
        before, asked = digests(), len(server.asked)
        assert generate(server, "--samples", "6", "--few-shot", "1")[0] == 0
        roles = [[m["role"] for m in body["messages"]] for body in server.asked[asked:]]
        assert roles == [["system", "user", "assistant", "user"]] * 6
        assert not before & digests()
        card = json.loads((tmp_path / "out" / "card.json").read_text())
        assert card["worked_examples"] == {"conversation": 1, "detail": 1, "reasoning": 1}
        assert generate(server, "--samples", "6")[0] == 0  # back: nothing is asked again
    assert digests() == before and len(server.asked) == 12


def test_texts_changed_between_two_runs_ask_anew_and_mix_nothing(
    generate: Generate, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (own / "detail").mkdir(parents=True)
    options = ("--kind", "detail", "--prompts", str(own))
    found = []
    with serving() as server:
        for text in ("Describe it.", "Describe it well."):
            (own / "detail" / "system.txt").write_text(text)
            assert generate(server, *options)[0] == 0
            rows = read_lines(tmp_path / "out" / "instruct.jsonl")
            found.append({row["prompts"] for row in rows})
            assert len(rows) == 10
    assert len(found[0] | found[1]) == 2
    asked = [body["messages"][0]["content"] for body in server.asked]
    assert sorted(asked) == ["Describe it well."] * 10 + ["Describe it."] * 10


def test_a_budget_is_passed_by_what_was_in_flight_and_no_more(generate: Generate) -> None:
    flying, used = 4, (6000, 3000)  # far more than anybody could expect of such requests

    def script(body: dict[str, Any], times: int) -> Reply:
        return Reply(answer_for(body), usage=used, delay=0.02)

    options = ("--max-tokens", "100", "--concurrency", str(flying), "--budget-tokens", "30000")
    with serving(script) as server:
        code, document, err = generate(server, *options)
        spent = document["spent"]["prompt_tokens"] + document["spent"]["completion_tokens"]
        assert code == 5 and "the budget is spent" in err
        assert spent == len(server.asked) * sum(used) <= 30000 + flying * sum(used)
        asked = len(server.asked)
        code, document, _ = generate(server, *options)  # the same budget, over all runs
        assert (code, len(server.asked), document["answered_now"]) == (5, asked, 0)


def test_a_budget_of_nothing_sends_nothing(generate: Generate) -> None:
    with serving() as server:
        code, document, err = generate(server, "--budget-tokens", "0")
    assert (code, server.asked, document["missing"]) == (5, [], 21)
    assert "the budget is spent" in err
