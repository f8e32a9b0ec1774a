"""An engine that dies in the middle of an answer (row 50): each protocol's own word for it, and the stream ends."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from scripted import ScriptedSession
from starlette.testclient import TestClient

from sizewise.core.errors import EngineFailed
from sizewise.core.model import Model
from sizewise.load.store.store import Store
from sizewise.serve.access_log import Log
from sizewise.serve.app import create_app
from sizewise.serve.job import Event, Job, Piece
from sizewise.serve.manager import Manager
from sizewise.serve.settings import Settings

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


class Dying(ScriptedSession):
    """Says one word and dies; `silent`: not even that."""

    silent = False

    async def stream(self, job: Job) -> AsyncIterator[Event]:
        if not self.silent:
            yield Piece(text="word")
        raise EngineFailed(f"{self.model.name}: the engine wrote no valid call (/opt/secret/place/file.gguf)")


@pytest.fixture
def client(tiny_home: Path) -> Iterator[TestClient]:
    store = Store(tiny_home / "models")

    async def open_dying(model: Model, *, context: int, **_: Any) -> Any:
        return Dying(model, context)

    with open(os.devnull, "w") as nowhere:
        app = create_app(Settings(threads=1), store, log=Log(nowhere))
        app.state.manager = Manager(Settings(), store, opener=open_dying)
        with TestClient(app, base_url="http://localhost") as client:
            yield client


def stream(client: TestClient, path: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
    """The events of an answer: name and data."""
    answer = client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200
    assert "secret" not in answer.text
    found = []
    for block in answer.text.strip().split("\n\n"):
        *name, data = block.split("\n")
        found.append((name[0].removeprefix("event: ") if name else "", json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "n": 3}),
        ("/v1/completions", {"model": "tiny", "prompt": "x"}),
    ],
)
def test_openai_streams_end_with_an_error(client: TestClient, path: str, body: dict[str, Any]) -> None:
    events = stream(client, path, body)
    assert "word" in json.dumps(events[:-1])
    name, last = events[-1]
    assert name == ""
    assert last["error"]["type"] == "api_error"
    assert "no valid call" in last["error"]["message"]


def test_responses_fail_in_their_own_words(client: TestClient) -> None:
    name, last = stream(client, "/v1/responses", {"model": "tiny", "input": "x"})[-1]
    assert name == last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert "no valid call" in last["response"]["error"]["message"]


def test_messages_fail_in_their_own_words(client: TestClient) -> None:
    name, last = stream(client, "/v1/messages", CHAT)[-1]
    assert name == last["type"] == "error"
    assert last["error"]["type"] == "api_error"


def test_the_openai_package_raises(client: TestClient) -> None:
    """It reads the error within the stream and raises it."""
    with openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=client) as package:
        chunks = package.chat.completions.create(**CHAT, stream=True)
        with pytest.raises(openai.APIError, match="no valid call"):
            list(chunks)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"])
def test_before_the_first_byte_it_has_a_status(client: TestClient, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dying, "silent", True)
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "messages": CHAT["messages"]}
    if path == "/v1/responses":
        body = {"model": "tiny", "input": "x"}
    if path == "/v1/completions":
        body = {"model": "tiny", "prompt": "x"}
    for stream_it in (False, True):
        answer = client.post(path, json={**body, "stream": stream_it})
        assert answer.status_code == 500
        assert "no valid call" in answer.json()["error"]["message"]
