"""`--engine server`: the same answers, from a server that runs already."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PIL

from llava_cli.conversation import Conversation
from llava_cli.engines.base import Sampling
from llava_cli.engines.server import ServerEngine
from llava_cli.errors import LlavaError, ModelNotFound, UsageError
from llava_cli.images import Image
from tests.llava_cli.serving.conftest import Start


@pytest.fixture
def asked(tmp_path: Path) -> Conversation:
    PIL.new("RGBA", (40, 30), (255, 0, 0, 0)).save(tmp_path / "a.png")
    image = Image.from_path(tmp_path / "a.png", background="blue")
    return Conversation().add("system", "be brief").add("user", image, "what?")


def test_an_answer_with_its_counts(start: Start, asked: Conversation) -> None:
    server = start()
    engine = ServerEngine(server.url)
    sampling = Sampling(temperature=0.5, top_k=4, min_p=0.1, repeat_penalty=1.2, stop=("END",))
    tokens = list(engine.generate(asked, sampling))
    assert [token.text for token in tokens] == ["hello ", "there", ""]
    stats = tokens[-1].stats
    assert stats is not None
    assert (stats.prompt_tokens, stats.image_tokens, stats.completion_tokens) == (5, 16, 2)
    assert [(i.width, i.height, i.tokens) for i in stats.images] == [(40, 30, 16)]
    conversation, sent = server.engine.asked[-1]
    assert [(m.role, m.text) for m in conversation.messages] == [
        *(("system", "be brief"), ("user", "what?")),
    ]
    assert conversation.images[0].open().getpixel((5, 5)) == (0, 0, 255)
    assert sent == sampling


def test_a_batch_comes_whole(start: Start) -> None:
    engine = ServerEngine(start().url)
    conversations = [Conversation().add("user", str(n)) for n in range(12)]
    texts = [""] * 12
    for index, token in engine.generate_batch(conversations, Sampling()):
        texts[index] += token.text
    assert texts == ["hello there"] * 12


def test_ending_early_frees_the_place(start: Start) -> None:
    server = start(script=[*[0.02, "more "] * 5000])
    tokens = ServerEngine(server.url).generate(Conversation().add("user", "x"), Sampling())
    assert next(iter(tokens)).text == "more "
    tokens.close()  # type: ignore[attr-defined]
    server.wait_until(lambda: server.worker.active == 0)


def test_what_goes_wrong_has_a_remedy(start: Start) -> None:
    server = start(api_key="key")
    with pytest.raises(LlavaError, match="API key") as caught:
        ServerEngine(server.url)
    assert "LLAVA_API_KEY" in caught.value.hint
    engine = ServerEngine(server.url + "/v1/", api_key="key", model="llava-demo")
    with pytest.raises(UsageError, match="no probabilities"):
        list(engine.generate(Conversation().add("user", "x"), Sampling(top_logprobs=3)))
    with pytest.raises(LlavaError, match="answered 400"):
        list(engine.generate(Conversation().add("assistant", "x"), Sampling()))
    with pytest.raises(ModelNotFound):
        ServerEngine(server.url, api_key="key", model="other")
    with pytest.raises(LlavaError, match="no server answers") as gone:
        ServerEngine("http://127.0.0.1:9")
    assert "llava serve" in gone.value.hint
    with pytest.raises(UsageError):
        ServerEngine("localhost")
