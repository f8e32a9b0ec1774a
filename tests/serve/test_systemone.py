"""Typed decisions, asked with the official Ollama client."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest
from served import Served
from starlette.testclient import TestClient

from sizewise.core.recipe import Lineage
from sizewise.load.linear_model import LinearModel
from sizewise.load.models import save_model
from sizewise.load.store.store import Store
from sizewise.serve.body import BadField, Fields
from sizewise.serve.wire import systemone

STATE = "Our checkout has returned error 500 since nine o'clock and customers cannot pay."
LABEL: Any = {
    "type": "choice",
    "instructions": "Which label fits this ticket?",
    "criteria": {"billing": "payments and refunds", "bug": "software errors", "account": None},
}
URGENT: Any = {"type": "noul", "instructions": "Is it urgent?", "criteria": {"true": "at once", "false": "can wait"}}
HARM: Any = {"type": "score", "instructions": "How bad is it?", "criteria": ["harmless", "annoying", "a disaster"]}


def save_classifier(store: Store, folder: Path, name: str, words: dict[str, str]) -> None:
    """A classifier that knows one word of each of its labels."""
    folder.mkdir()
    labels = tuple(words)
    size = len(labels)
    made = LinearModel(
        kind="tfidf",
        classes=labels,
        coefficients=4 * np.eye(size, dtype=np.float32),
        intercept=np.zeros(size, np.float32),
        vocabulary=tuple(words.values()),
        idf=np.ones(size, np.float32),
    )
    save_model(name, "linear", made.save(folder), lineage=Lineage(recipe=None), store=store)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    import os

    from sizewise.serve.access_log import Log
    from sizewise.serve.app import create_app
    from sizewise.serve.settings import Settings

    home = tmp_path_factory.mktemp("linear")
    store = Store(home / "models")
    save_classifier(store, home / "a", "tickets", {"billing": "refund", "bug": "error", "account": "login"})
    save_classifier(store, home / "b", "levels", {"0": "harmless", "1": "annoying", "2": "disaster"})
    save_classifier(store, home / "c", "spam", {"Yes": "prize", "No": "meeting", "Maybe": "hello"})
    with open(os.devnull, "w") as nowhere:
        app = create_app(Settings(threads=1), store, log=Log(nowhere))
        with TestClient(app, base_url="http://localhost") as client:
            yield client
            assert client.portal
            client.portal.call(app.state.manager.close, 0.0)


def decide(client: TestClient, model: str, state: str, question: Any) -> Any:
    return client.post("/v1/systemone", json={"model": model, "state": state, "questions": {"q": question}})


def test_a_classifier_answers_with_its_own_probabilities(linear: TestClient) -> None:
    answer = decide(linear, "tickets", "an error in the page", LABEL)
    assert answer.status_code == 200, answer.text
    told = answer.json()["answers"]["q"]
    best, other = math.exp(4) / (math.exp(4) + 2), 1 / (math.exp(4) + 2)
    assert told["choice"] == "bug"
    assert list(told["probabilities"]) == ["billing", "bug", "account"]
    assert told["probabilities"] == pytest.approx({"billing": other, "bug": best, "account": other}, rel=1e-4)
    entropy = -(best * math.log(best) + 2 * other * math.log(other))
    assert told["confidence"] == pytest.approx(1 - entropy / math.log(3), rel=1e-4)
    assert "class probabilities" in answer.json()["method"]
    assert "instructions" in answer.json()["warnings"][0]


def test_a_classifier_with_levels(linear: TestClient) -> None:
    told = decide(linear, "levels", "a disaster", HARM).json()["answers"]["q"]
    assert told["legend"] == {"0": "harmless", "1": "annoying", "2": "a disaster"}
    assert told["score"] == pytest.approx(told["probabilities"]["1"] + 2 * told["probabilities"]["2"])
    assert told["score"] > 1.8


def test_a_classifier_that_says_yes_or_no(linear: TestClient) -> None:
    question = {"type": "noul", "instructions": "Is it spam?"}
    told = decide(linear, "spam", "you won a prize", question).json()["answers"]["q"]
    assert told == {"type": "noul", "noul": pytest.approx(math.exp(4) / (math.exp(4) + 1), rel=1e-4)}


def test_labels_that_a_classifier_does_not_have(linear: TestClient) -> None:
    question = {**LABEL, "criteria": {"bug": None, "feature": None}}
    answer = decide(linear, "tickets", "x", question)
    assert answer.status_code == 400
    assert "'feature'" in answer.json()["error"]
    assert "billing" in answer.json()["error"]


def test_probabilities_of_texts_that_begin_alike() -> None:
    """An answer that begins with `no idea` also begins with `no`."""
    words = ["no", "no idea", "yes"]
    found = systemone.normalised(words, [math.log(0.5), math.log(0.2), math.log(0.1)])
    assert found == pytest.approx([0.3 / 0.6, 0.2 / 0.6, 0.1 / 0.6])


def test_probabilities_that_are_far_apart() -> None:
    found = systemone.normalised(["a", "b"], [-1000.0, -2000.0])
    assert found == pytest.approx([1.0, 0.0])


def test_concentration() -> None:
    assert systemone.concentration([0.25] * 4) == pytest.approx(0)
    assert systemone.concentration([1.0, 0.0]) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"state": ""}, "state"),
        ({"state": []}, "state"),
        ({"questions": {}}, "questions"),
        ({"questions": {" ": LABEL}}, "questions"),
        ({"questions": {"q": {**LABEL, "type": "essay"}}}, "questions.q.type"),
        ({"questions": {"q": {**LABEL, "instructions": ""}}}, "questions.q.instructions"),
        ({"questions": {"q": {**LABEL, "criteria": {"one": None}}}}, "questions.q.criteria"),
        ({"questions": {"q": {**LABEL, "criteria": {"a": 1, "b": 2}}}}, "questions.q.criteria.a"),
        ({"questions": {"q": {**HARM, "criteria": ["x"]}}}, "questions.q.criteria"),
        ({"questions": {"q": {**HARM, "criteria": ["x"] * 27}}}, "questions.q.criteria"),
        ({"questions": {"q": {**URGENT, "criteria": {"maybe": "x"}}}}, "questions.q.criteria.maybe"),
        ({"questions": {"q": {**URGENT, "weight": 1}}}, "questions.q.weight"),
        ({"keep_alive": "5 parsecs"}, "keep_alive"),
        ({"model": ""}, "model"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_bad_requests(change: dict[str, Any], field: str) -> None:
    body = {"model": "m", "state": "s", "questions": {"q": LABEL}, **change}
    with pytest.raises(BadField) as error:
        systemone.parse(Fields(body))
    assert error.value.field == field


@pytest.mark.model
def test_a_language_model_decides(server: Served) -> None:
    client = ollama.Client(host=server.url)
    answer = client.systemone("smollm2", STATE, {"label": LABEL, "urgent": URGENT, "harm": HARM})
    label: Any = answer.answers["label"]
    assert label.choice == max(label.probabilities, key=lambda key: label.probabilities[key])
    for key in ("label", "harm"):
        found: Any = answer.answers[key]
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert 0 <= found.confidence <= 1
    urgent: Any = answer.answers["urgent"]
    assert 0 < urgent.noul < 1
    assert answer.usage.input_tokens > 50


@pytest.mark.model
def test_the_state_decides(server: Served) -> None:
    """The same question about two states: the probabilities follow the state."""
    client = ollama.Client(host=server.url)
    question: Any = {
        "type": "choice",
        "instructions": "What is it about?",
        "criteria": {"sport": None, "cooking": None},
    }
    shares = []
    for state in ("The striker scored twice in the final match.", "Fry the onions in butter, then add the rice."):
        answer: Any = client.systemone("smollm2", state, {"q": question}).answers["q"]
        shares.append(answer.probabilities["sport"])
    assert shares[0] > shares[1] + 0.05


@pytest.mark.model
def test_errors_reach_the_client(server: Served) -> None:
    client = ollama.Client(host=server.url)
    with pytest.raises(ollama.ResponseError) as error:
        client.systemone("gone", STATE, {"q": LABEL})
    assert error.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as error:
        client.systemone("smollm2", "", {"q": LABEL})
    assert error.value.status_code == 400
