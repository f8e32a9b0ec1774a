"""S17: bodies that nobody would send. Whatever they hold, no answer is a fault of ours, and no child dies of them."""

import copy
import json
import random
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from sizewise.serve.app import routes

NUMBERS: list[Any] = [0, 1, -1, 2, 0.5, 1e9, -1e9, 2**31, 2**63, -(2**63), 1e308, 10**19]
TEXTS: list[Any] = [
    "",
    "x",
    "\0",
    "\ud7ff\U0010ffff",
    "\u2028",
    "<|im_end|>",
    "a" * 5000,
    "{{ 1/0 }}",
    "%s%n",
    "../../x",
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, [1, "a", {}], {"type": "object"}]
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/rerank": {"query": "a", "documents": ["b", "c"]},
    "/v1/systemone": {
        "state": "it rains",
        "questions": {"q": {"type": "choice", "instructions": "what?", "criteria": {"sun": None, "rain": None}}},
    },
    "/api/generate": {"prompt": "hi", "options": {"num_predict": 2}},
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 2}},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/api/show": {},
    "/api/create": {"from": "tiny", "stream": False},
    "/api/copy": {"source": "tiny", "destination": "tiny-copy"},
}
for _root in ("v1", "api"):
    VALID |= {
        f"/{_root}/tokenize": {"text": "hi"},
        f"/{_root}/detokenize": {"tokens": [5]},
        f"/{_root}/count": {"text": "hi"},
    }
FIELDS = (
    *("stream", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "max_tokens", "logprobs"),
    *("top_logprobs", "num_ctx", "keep_alive", "format", "response_format", "tools", "tool_choice", "grammar"),
    *("logit_bias", "echo", "suffix", "messages", "prompt", "input", "options", "images", "think", "raw"),
    *("template", "system", "context", "dimensions", "encoding_format", "questions", "state", "documents"),
    *("query", "top_n", "text", "tokens", "include", "presence_penalty", "frequency_penalty", "stream_options"),
    *("reasoning_effort", "thinking", "truncation", "best_of"),
)
# These reach out to other machines, or take bytes instead of JSON; their own tests cover them.
LEFT_OUT = ("/api/pull", "/api/push", "/api/blobs")


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    kind = rng.random()
    if depth < 3 and kind < 0.15:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if depth < 3 and kind < 0.3:
        keys = rng.choices((*FIELDS, "type", "role", "content", "name", "$ref", "pattern"), k=rng.randint(0, 4))
        return {key: value(rng, depth + 1) for key in keys}
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS))))


def mutated(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """A valid body with some fields added or replaced, on the first or a deeper level."""
    made: dict[str, Any] = json.loads(json.dumps(body))
    for _ in range(rng.randint(1, 3)):
        place: Any = made
        while rng.random() < 0.5:
            inner = [
                part for part in (place.values() if isinstance(place, dict) else place) if isinstance(part, dict | list)
            ]
            if not inner:
                break
            place = rng.choice(inner)
        if isinstance(place, dict):
            place[rng.choice([*place, *rng.sample(FIELDS, 3)])] = value(rng)
        elif place:
            place[rng.randrange(len(place))] = value(rng)
    return made


def paths() -> list[str]:
    found = [route.path for route in routes() if isinstance(route, Route) and "POST" in (route.methods or ())]
    return sorted(path for path in found if not path.startswith(LEFT_OUT))


def test_every_endpoint_is_fuzzed() -> None:
    """A new endpoint must be listed here, or left out on purpose."""
    assert {path for path in paths() if path.startswith(("/v1/", "/api/"))} <= set(VALID) | {"/api/delete"}


@pytest.mark.slow
@pytest.mark.parametrize("path", paths())
def test_no_body_is_a_fault_of_ours(app_client: TestClient, path: str) -> None:
    rng = random.Random(f"bodies {path}")
    manager: Any = app_client.app.state.manager  # type: ignore[attr-defined]
    good = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    assert app_client.post("/v1/completions", json=good).status_code == 200
    before = manager.pids()
    for number in range(28):
        body = mutated(rng, {"model": "tiny", **VALID.get(path, {})})
        if "num_ctx" in body or body.get("model") != "tiny":
            body |= {"num_ctx": None, "model": "tiny"}  # another session, or none, would hide a death of this one
        body["keep_alive"] = None
        if isinstance(body.get("options"), dict):
            body["options"].pop("num_ctx", None)
        answer = app_client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code < 500, (number, body, answer.text[:500])
        assert "Traceback" not in answer.text
    assert set(before) <= set(manager.pids())
    assert app_client.post("/v1/completions", json=good).status_code == 200
