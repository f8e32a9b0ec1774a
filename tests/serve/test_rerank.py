"""Documents in order: by a reranker, by an encoder, and not by a language model."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tiny_checkpoint import write_encoder
from tiny_reranker import make_reranker, pair_score, write_reranker

from sizewise.core.recipe import Lineage
from sizewise.load.models import save_model
from sizewise.load.store.store import Store
from sizewise.serve.access_log import Log
from sizewise.serve.app import create_app
from sizewise.serve.settings import Settings

DOCUMENTS = ["dogs bark at night", "the sun is warm today", "cats sleep on mats", "night"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    home = tmp_path_factory.mktemp("rerank")
    store, made = Store(home / "models"), {"lineage": Lineage(recipe=None)}
    file = write_reranker(home / "reranker.gguf", make_reranker())
    save_model("judge", "gguf", {"model.gguf": file}, store=store, **made)  # type: ignore[arg-type]
    folder = write_encoder(home / "encoder", longest=64)
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    save_model("encoder", "encoder", files, store=store, **made)  # type: ignore[arg-type]
    with open(os.devnull, "w") as nowhere:
        app = create_app(Settings(threads=1), store, log=Log(nowhere))
        with TestClient(app, base_url="http://localhost") as client:
            yield client
            assert client.portal
            client.portal.call(app.state.manager.close, 0.0)


def ask(client: TestClient, model: str, **fields: Any) -> Any:
    body = {"model": model, "query": "cats sleep", "documents": DOCUMENTS, **fields}
    return client.post("/v1/rerank", json=body)


def test_a_reranker_gives_the_scores_of_its_network(client: TestClient) -> None:
    answer = ask(client, "judge")
    assert answer.status_code == 200, answer.text
    told = {one["index"]: one["relevance_score"] for one in answer.json()["results"]}
    network = make_reranker()
    assert [told[place] for place in range(4)] == pytest.approx(
        [pair_score(network, "cats sleep", document) for document in DOCUMENTS], abs=1e-2
    )
    assert len({round(score, 3) for score in told.values()}) == 4
    scores = [one["relevance_score"] for one in answer.json()["results"]]
    assert scores == sorted(scores, reverse=True)
    assert "reranker" in answer.json()["method"]
    assert answer.json()["usage"]["total_tokens"] == sum(2 + 3 + len(document.split()) for document in DOCUMENTS)


def test_an_encoder_compares_vectors(client: TestClient) -> None:
    answer = ask(client, "encoder", top_n=2, return_documents=True)
    assert answer.status_code == 200, answer.text
    texts = ["cats sleep", *DOCUMENTS]
    data = client.post("/v1/embeddings", json={"model": "encoder", "input": texts}).json()["data"]
    vectors = np.array([one["embedding"] for one in data])
    similar = vectors[1:] @ vectors[0]
    results = answer.json()["results"]
    assert [one["index"] for one in results] == list(np.argsort(-similar)[:2])
    assert results[0]["relevance_score"] == pytest.approx(similar.max(), abs=1e-5)
    assert results[0]["document"]["text"] == DOCUMENTS[results[0]["index"]]
    assert "cosine" in answer.json()["method"]


def test_a_language_model_is_told_what_can_be_used(app_client: TestClient) -> None:
    answer = app_client.post("/v1/rerank", json={"model": "tiny", "query": "a", "documents": ["b"]})
    assert answer.status_code == 400
    assert "reranker" in answer.json()["error"]["message"]


def test_a_reranker_neither_writes_nor_embeds(client: TestClient) -> None:
    chat = {"model": "judge", "messages": [{"role": "user", "content": "cats"}], "max_tokens": 1}
    assert client.post("/v1/chat/completions", json=chat).status_code == 400
