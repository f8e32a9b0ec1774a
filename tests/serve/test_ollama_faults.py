"""Texts of all scripts, huge prompts and engines that die, over Ollama's endpoints."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from served import CHAT, Served, StartServer
from starlette.testclient import TestClient
from tiny_gguf import write_tiny_llama

from sizewise.core.recipe import Lineage
from sizewise.load.models import save_model
from sizewise.load.store.store import Store
from sizewise.serve.access_log import Log
from sizewise.serve.app import create_app
from sizewise.serve.settings import Settings

TEXTS, TOGETHER = 1000, 20
GREEDY = {"temperature": 0, "num_predict": 8}


@pytest.fixture(scope="module")
def wide_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The application in this process, with a tiny model that can say more than the usual ones."""
    home = tmp_path_factory.mktemp("wide")
    file = write_tiny_llama(home / "wide.gguf", context=8192, layers=1)
    store = Store(home / "models")
    save_model("tiny", "gguf", {"model.gguf": file}, template=CHAT, lineage=Lineage(recipe=None), store=store)
    with open(os.devnull, "w") as nowhere:
        app = create_app(Settings(threads=1, parallel=1), store, log=Log(nowhere))
        with TestClient(app, base_url="http://localhost") as client:
            yield client
            assert client.portal
            client.portal.call(app.state.manager.close, 0.0)


def right(served: Served) -> str:
    answer = ollama.Client(served.url).generate("smollm2", "Say hello.", options=GREEDY)
    assert answer.response
    return answer.response


@pytest.mark.model
def test_an_engine_that_dies_in_the_middle_of_an_answer(smollm2_home: Path, start_server: StartServer) -> None:
    served = start_server(smollm2_home)
    client = ollama.Client(served.url)
    expected = right(served)
    parts = client.generate("smollm2", "Tell me a story.", options={"num_predict": 2000}, stream=True)
    assert next(iter(parts)).response is not None
    for engine in [one for one in served.children() if "_llamacpp_child" in " ".join(one.cmdline())]:
        os.kill(engine.pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(ollama.ResponseError) as caught:
        for _ in parts:
            pass
    assert caught.value.status_code == -1  # an error line in the stream, as the client reads it
    assert time.monotonic() - begun < 10
    assert "/" not in caught.value.error
    assert right(served) == expected


@pytest.mark.model
def test_two_hundred_thousand_tokens_are_refused_at_once(server: Served) -> None:
    with server.client(60) as client:
        for text in ("a", "\u00e9", "\U0001f600", "\n", "word "):
            begun = time.monotonic()
            body = {"model": "smollm2", "prompt": text * (2**20 // len(text.encode()))}
            answer = client.post("/api/generate", json=body)
            assert answer.status_code == 400
            assert "8192" in answer.json()["error"]
            assert time.monotonic() - begun < 20  # the promise is two seconds, on a machine that does nothing else
    assert right(server)


def texts(seed: int, count: int) -> list[str]:
    """Texts of letters of all scripts, signs beyond the first plane, joined emoji, and ends of lines of all kinds."""
    draw = random.Random(seed)
    ranges = ((0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x58F), (0x900, 0xD7F), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF))
    special = ("\u2028", "\u2029", "\u0085", "\u200d", "\ufe0f", "\U0001f469\u200d\U0001f4bb", "\n", '"', "\\", "\t")
    made = []
    for _ in range(count):
        letters = [
            draw.choice(special) if draw.random() < 0.15 else chr(draw.randint(*draw.choice(ranges)))
            for _ in range(draw.randint(1, 12))
        ]
        made.append("".join(letters))
    return made


def pieces_of(client: TestClient, fields: dict[str, Any], openai: bool) -> list[str]:
    """The text of each chunk of a streamed answer, of which every line must be JSON."""
    if not openai:
        body = {"model": "tiny", "prompt": "x", "format": fields, "options": {"num_predict": 4000}}
        answer = client.post("/api/generate", json=body)
        lines = [json.loads(line) for line in answer.content.split(b"\n") if line]
        assert len(answer.text.splitlines()) == len(lines)  # also for clients that split at U+2028
        return [line["response"] for line in lines]
    turns = [{"role": "user", "content": "x"}]
    form = {"type": "json_schema", "json_schema": {"name": "texts", "schema": fields}}
    chat = {"model": "tiny", "messages": turns, "stream": True, "response_format": form}
    answer = client.post("/v1/chat/completions", json=chat)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]


@pytest.mark.slow
def test_a_thousand_texts_of_all_scripts_stream_as_they_are(wide_client: TestClient) -> None:
    """R13. The model has a token for each byte, and a schema makes it say the texts: no character comes in halves."""
    wanted = texts(0, TEXTS)
    for start in range(0, TEXTS, TOGETHER):
        group = {f"t{place}": text for place, text in enumerate(wanted[start : start + TOGETHER])}
        properties = {name: {"type": "string", "enum": [text]} for name, text in group.items()}
        fields = {"type": "object", "properties": properties, "required": list(group), "additionalProperties": False}
        pieces = pieces_of(wide_client, fields, openai=start % (2 * TOGETHER) == 0)
        assert len(pieces) > 1
        assert "\ufffd" not in "".join(pieces)
        assert not any(0xD800 <= ord(char) < 0xE000 for piece in pieces for char in piece)
        assert json.loads("".join(pieces)) == group
        if start % (10 * TOGETHER) == 0:
            body = {"model": "tiny", "prompt": "x", "format": fields, "options": {"num_predict": 4000}, "stream": False}
            whole = wide_client.post("/api/generate", json=body).json()
            assert json.loads(whole["response"]) == group


def test_many_at_once_get_their_own_answers(app_client: TestClient) -> None:
    wanted = texts(1, 8)
    got: dict[int, Any] = {}

    def ask(place: int) -> None:
        body = {"model": "tiny", "prompt": "x", "stream": False, "format": {"type": "string", "enum": [wanted[place]]}}
        got[place] = app_client.post("/api/generate", json=body).json()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [json.loads(got[place]["response"]) for place in range(len(wanted))] == wanted
