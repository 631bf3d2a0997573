"""`llava data generate` against an endpoint of its own: whatever that does, all samples come."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from llava_train.datagen.prompt_set import load
from tests.llava_train.datagen.conftest import Generate, read_lines
from tests.llava_train.datagen.server import Reply, answer_for, serving, well_behaved

PLANNED = {"conversation": 8, "detail": 3, "reasoning": 10}
ALL = sum(PLANNED.values())


def test_all_kinds_come_out_in_llavas_layout(generate: Generate, tmp_path: Path) -> None:
    with serving() as server:
        code, document, _ = generate(server)
    assert code == 0
    assert document["planned"] == document["written"] == PLANNED
    samples = json.loads((tmp_path / "out" / "instruct.json").read_text())
    assert samples == read_lines(tmp_path / "out" / "instruct.jsonl")
    assert len({sample["id"] for sample in samples}) == ALL
    places = set()
    for sample in samples:
        turns = sample["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        first = turns[0]["value"]
        assert first.count("<image>") == 1
        assert all("<image>" not in turn["value"] for turn in turns[1:])
        places.add("first" if first.startswith("<image>\n") else "last")
        assert first.startswith("<image>\n") or first.endswith("\n<image>")
        assert sample["prompts"] == load().digest(sample["kind"])[:16]
        if sample["kind"] == "detail":
            assert first.replace("<image>", "").strip() in load().questions("detail/questions.txt")
    assert places == {"first", "last"}


def test_requests_have_the_documented_structure(generate: Generate) -> None:
    with serving() as server:
        generate(server, "--temperature", "0.5", "--top-p", "0.9", "--max-tokens", "77")
    for body in server.asked:
        assert set(body) == {"model", "messages", "max_tokens", "temperature", "top_p"}
        assert (body["model"], body["max_tokens"], body["top_p"]) == ("scripted", 77, 0.9)
        system, *turns, query = body["messages"]
        assert system["role"] == "system"
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        captions, _, boxes = query["content"].partition("\n\n")
        assert len(captions.splitlines()) == 5
        assert bool(boxes) == ("conversation between" not in system["content"])
    with serving() as server:
        generate(server, "--samples", "1", "--token-limit-name", "max_completion_tokens")
    assert set(server.asked[0]) == {"model", "messages", "max_completion_tokens"}


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with serving() as server:
        assert generate(server, "--api-key-env", "MY_KEY")[0] == 0
    assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-very-secret"}
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file())
    assert b"very-secret" not in written


def first_times(*replies: Reply) -> Any:
    """Every request meets these replies, one after the other, and then a good one."""

    def script(body: dict[str, Any], times: int) -> Reply:
        return replies[times] if times < len(replies) else well_behaved(body, times)

    return script


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param([Reply(status=429)], id="429"),
        pytest.param([Reply(status=429, headers={"Retry-After": "0"})], id="429-retry-after"),
        pytest.param([Reply(status=429, headers={"Retry-After": "soon"})], id="429-nonsense"),
        pytest.param([Reply(status=429)] * 9, id="429-more-often-than-attempts"),
        pytest.param([Reply(status=s) for s in (500, 502, 503, 529)], id="5xx"),
        pytest.param([Reply("x", cut=0), Reply("x", cut=20)], id="cut"),
        pytest.param([Reply(body=b"<html>busy</html>")], id="no-json"),
        pytest.param([Reply(body=b'{"choices": []}')], id="no-choice"),
        pytest.param([Reply(body=b'{"choices": [{"message": {"content": 5}}]}')], id="no-text"),
        pytest.param([Reply(body=b"[" * 100_000)], id="deep"),
        pytest.param([Reply(body=b"")], id="nothing"),
    ],
)
def test_a_failing_endpoint_costs_attempts_but_no_sample(
    generate: Generate, tmp_path: Path, replies: list[Reply]
) -> None:
    with serving(first_times(*replies)) as server:
        code, document, err = generate(server, "--concurrency", "32")
    assert code == 0, err
    assert document["written"] == PLANNED and document["missing"] == 0
    assert set(server.seen.values()) == {len(replies) + 1}
    assert len(read_lines(tmp_path / "out" / "instruct.jsonl")) == ALL


def test_a_pause_that_the_endpoint_names_is_kept_by_all(generate: Generate) -> None:
    started = []

    def script(body: dict[str, Any], times: int) -> Reply:
        started.append(time.monotonic())
        if len(started) == 1:
            return Reply(status=429, headers={"Retry-After": "0.4"})
        return well_behaved(body, times)

    with serving(script) as server:
        code, _, _ = generate(server, "--concurrency", "1", "--samples", "3")
    assert code == 0
    assert started[1] - started[0] >= 0.4


def test_slow_answers_arrive_and_a_stuck_one_is_asked_again(generate: Generate) -> None:
    with serving(lambda body, times: Reply(answer_for(body), drip=0.005)) as server:
        assert generate(server, "--samples", "4", "--timeout", "60")[0] == 0

    def stuck(body: dict[str, Any], times: int) -> Reply:
        return Reply(answer_for(body), delay=0.0 if times else 4.0)

    options = ("--samples", "2", "--seed", "5", "--timeout", "2", "--attempts", "50")
    with serving(stuck) as server:
        code, document, err = generate(server, *options, "--llm", "other")
    assert (code, document["missing"]) == (0, 0), err
    # A busy machine may be slower than the time limit once more; then that is counted, too.
    lost = document["spent"]["requests_lost_that_may_have_been_billed"]
    assert lost == len(server.asked) - 2 >= 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hopeless_endpoint_ends_the_run_at_once(generate: Generate, status: int) -> None:
    with serving(lambda body, times: Reply("wrong key", status=status)) as server:
        code, document, err = generate(server, "--concurrency", "2")
    assert (code, document) == (1, None)
    assert "cannot be asked" in err and str(status) in err
    assert len(server.asked) <= 2


@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_ends_waits_for_no_pause(generate: Generate, late: bool) -> None:
    def script(body: dict[str, Any], times: int) -> Reply:
        if "conversation between" in body["messages"][0]["content"]:
            return Reply(status=503, headers={"Retry-After": "3000"}, delay=1.0 * late)
        return Reply("wrong key", status=401, delay=0.5 * (not late))

    with serving(script) as server:
        code, _, err = generate(server)
    assert code == 1 and "401" in err


def test_what_is_refused_for_good_is_listed_and_tried_again_next_time(
    generate: Generate, tmp_path: Path
) -> None:
    def script(body: dict[str, Any], times: int) -> Reply:
        bad = "Picture 3," in body["messages"][-1]["content"]
        return Reply("too long", status=400) if bad else well_behaved(body, times)

    with serving(script) as server:
        code, document, err = generate(server)
    assert code == 5 and document["missing"] >= 1
    assert json.loads(err)["error"]["type"] == "PartialFailure"
    missing = read_lines(tmp_path / "out" / "missing.jsonl")
    assert {row["image"] for row in missing} == {"3.jpg"}
    assert all("400" in row["why"] for row in missing)
    with serving() as server:
        code, document, _ = generate(server)
    assert (code, len(server.asked)) == (0, len(missing))
    assert document["written"] == PLANNED


def test_an_endpoint_that_refuses_everything_is_given_up(
    generate: Generate, tmp_path: Path
) -> None:
    with serving(lambda body, times: Reply("bad parameter", status=400)) as server:
        code, _, err = generate(server, "--concurrency", "1")
    assert code == 1 and "bad parameter" in err
    assert len(server.asked) == 20


def test_nobody_listening_is_said_in_one_line(generate: Generate) -> None:
    with serving() as server:
        pass
    code, _, err = generate(server, "--attempts", "1", "--samples", "2")
    assert code == 5
    assert "Traceback" not in err


def test_answers_are_kept_or_rejected_and_none_vanishes(generate: Generate, tmp_path: Path) -> None:
    replies = {
        0: Reply("Question:\nWhat?"),
        1: Reply("I'm sorry, as an AI language model I cannot help with that. " + "word " * 40),
        2: Reply("Question:\nHow many captions?\n===\nAnswer:\nFive captions. " + "word " * 40),
        3: Reply("Question:\nWhy is it cut", finish="length"),
        4: Reply("", finish="content_filter"),
        5: Reply(""),
        6: Reply(body=b'{"choices": [{"message": {"content": null}}]}'),
        7: Reply("Question:\nWhy \ud800?\n===\nAnswer:\n<image> " + "word " * 40),
    }

    def script(body: dict[str, Any], times: int) -> Reply:
        number = int(body["messages"][-1]["content"].split(",")[0].removeprefix("Picture "))
        return replies.get(number, well_behaved(body, times))

    with serving(script) as server:
        code, document, _ = generate(server, "--kind", "reasoning")
    assert code == 0
    assert document["written"] == {"reasoning": 2}
    assert sum(document["rejected"].values()) == 8
    rows = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [row["reason"] for row in rows] == [
        *("not_alternating", "refusal", "source_mentioned", "cut"),
        *("withheld", "empty", "empty", "special_token"),
    ]
    assert set(server.seen.values()) == {1}  # an answer that was paid for is never asked again
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["rejected"]["all"] == 8 and card["samples"]["all"] == 2


def test_equal_requests_are_sent_once(generate: Generate, captions: Path) -> None:
    content = json.loads(captions.read_text())
    for row in content["annotations"]:
        row["caption"] = "The same words."
    captions.write_text(json.dumps(content))
    with serving() as server:
        code, document, _ = generate(server, "--kind", "conversation")
    assert code == 0
    assert document["written"] == {"conversation": 10}
    assert len(server.asked) == 1


def test_running_again_asks_nothing_and_writes_the_same(generate: Generate, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving() as server:
        generate(server)
        before = (out / "instruct.json").read_bytes()
        _, document, _ = generate(server)
        assert (len(server.asked), document["answered_now"]) == (ALL, 0)
        assert (out / "instruct.json").read_bytes() == before
        generate(server, "--seed", "1")  # another draw of the same pictures: only new pairs
    assert set(server.seen.values()) == {1}


def test_concurrency_is_reached_and_not_passed(generate: Generate) -> None:
    def script(body: dict[str, Any], times: int) -> Reply:
        return Reply(answer_for(body), delay=0.05)

    with serving(script) as server:
        generate(server, "--concurrency", "3")
    assert server.most_flying == 3


def test_requests_keep_their_distance(generate: Generate) -> None:
    started = time.monotonic()
    with serving() as server:
        assert generate(server, "--requests-per-minute", "120", "--samples", "4")[0] == 0
    # From the first departure to the last; arrivals on a busy machine may lie closer together.
    assert len(server.asked) == 4 and time.monotonic() - started >= 1.5


def price_table(tmp_path: Path) -> str:
    path = tmp_path / "prices.toml"
    path.write_text("[scripted]\ninput = 1000\noutput = 2000\n")  # 1.2 a request
    return str(path)


def test_a_budget_in_money_holds_and_more_money_goes_on(generate: Generate, tmp_path: Path) -> None:
    table = price_table(tmp_path)
    options = ("--prices", table, "--max-tokens", "100", "--concurrency", "4")
    with serving() as server:
        code, document, err = generate(server, *options, "--budget", "12")
        assert code == 5 and "budget" in err
        assert 0 < document["spent"]["cost"] <= 12
        assert document["spent"]["cost"] == pytest.approx(1.2 * len(server.asked))
        assert document["missing"] == ALL - len(server.asked)
        assert generate(server, *options, "--budget", "100")[0] == 0
    assert len(server.asked) == ALL


def test_lost_answers_count_against_the_budget(generate: Generate, tmp_path: Path) -> None:
    def script(body: dict[str, Any], times: int) -> Reply:
        return Reply("x", cut=5)

    with serving(script) as server:
        code, document, err = generate(server, "--budget-tokens", "12000", "--attempts", "50")
    assert code == 5 and "budget" in err
    spent = document["spent"]
    assert spent["requests_lost_that_may_have_been_billed"] == len(server.asked)
    assert spent["prompt_tokens"] + spent["completion_tokens"] <= 12000


def test_an_estimate_sends_nothing(generate: Generate, tmp_path: Path) -> None:
    with serving() as server:
        code, document, _ = generate(server, "--prices", price_table(tmp_path), "--estimate-cost")
    assert (code, server.asked) == (0, [])
    assert document["requests"] == ALL and document["samples"] == PLANNED
    assert 0 < document["cost"] < document["most_cost"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--budget", "1"], 2, "needs the model's price"),
        (["--mix", "1:2"], 2, "no mixture"),
        (["--samples", "1000"], 2, "at most 21 samples"),
        (["--kind", "poem"], 2, "poem"),
        (["--prompts", "."], 1, "no prompt"),
        (["--captions", "nowhere.json"], 2, "nowhere.json"),
        (["--images", "."], 1, "picture not in --images"),
        (["-o", "out.json"], 2, "is a folder"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: list[str], code: int, said: str,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with serving() as server:
        got, _, err = generate(server, *options)
    assert (got, server.asked) == (code, [])
    assert said in err and "Traceback" not in err


@pytest.mark.parametrize("url", ["", "here", "ftp://x/v1", "http://", "http:///v1"])
def test_an_address_that_is_none_is_a_usage_error(generate: Generate, url: str) -> None:
    code, _, err = generate(None, "--base-url", url)
    assert code == 2 and "is no address" in err


def test_names_that_no_file_can_hold_do_no_harm(generate: Generate, tmp_path: Path) -> None:
    def script(body: dict[str, Any], times: int) -> Reply:
        if not times:
            return Reply("bad \ud800 name", status=500)
        content = {"content": answer_for(body)}
        choice = {"message": content, "finish_reason": "\ud800"}
        odd = {"choices": [choice], "model": "\udfff", "usage": {"prompt_tokens": -1}}
        return Reply(body=json.dumps(odd).encode())

    with serving(script) as server:
        code, document, _ = generate(server, "--samples", "3")
    assert (code, sum(document["written"].values())) == (0, 3)


def test_no_key_and_no_endpoint_is_a_usage_error(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, _, err = generate(None)
    assert code == 2 and "OPENAI_API_KEY" in err


def test_parquet_and_webdataset_hold_the_same(generate: Generate, tmp_path: Path) -> None:
    from llava_train.samples.reading import samples

    with serving() as server:
        options = [f"--format={form}" for form in ("json", "parquet", "webdataset")]
        assert generate(server, *options)[0] == 0
    out = tmp_path / "out"
    found = [list(samples(out / n)) for n in ("instruct.json", "instruct.parquet", "instruct")]
    assert found[0] == found[1] == found[2] and len(found[0]) == ALL


def test_two_runs_into_one_folder_are_kept_apart(generate: Generate, tmp_path: Path) -> None:
    from llava_train.datagen.journal import Journal

    journal = Journal(tmp_path / "out" / "journal.sqlite")
    with serving() as server:
        code, _, err = generate(server)
    journal.close()
    assert (code, server.asked) == (1, [])
    assert "in use by another run" in err


def test_the_card_says_where_everything_comes_from(generate: Generate, tmp_path: Path) -> None:
    with serving() as server:
        generate(server, "--seed", "7")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["seed"] == 7
    assert len(card["source"]["captions"]["sha256"]) == 64
    assert card["language_model"]["model"] == "scripted"
    assert set(card["prompts_sha256"]) == set(PLANNED)
    assert card["samples"] == {**PLANNED, "all": ALL}
    assert card["spent"]["prompt_tokens"] == 1000 * ALL
    page = (tmp_path / "out" / "card.md").read_text()
    assert page.startswith("# ") and card["prompts_sha256"]["detail"] in page
