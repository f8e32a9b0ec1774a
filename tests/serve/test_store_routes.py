"""create, blobs, pull and push over HTTP: the unmodified `ollama` package, and what nobody should send."""

import json
import random
import socket
import threading
from pathlib import Path
from typing import Any

import ollama
import pytest
from loopback_servers import RegistryServer, sha256
from oci_registry import oci_registry
from served import Served
from starlette.testclient import TestClient
from tiny_checkpoint import write_causal
from tiny_gguf import write_tiny_llama, write_tiny_lora

from sizewise.load.models import find_model
from sizewise.load.store.store import Store
from sizewise.serve import background
from sizewise.serve.access_log import Log
from sizewise.serve.app import create_app
from sizewise.serve.settings import Settings

GO = "{{ if .System }}<<{{ .System }}>> {{ end }}{{ .Prompt }} {{ .Response }}"
SHORT: dict[str, Any] = {"num_predict": 4, "temperature": 0}


@pytest.fixture
def client(store_served: Served) -> ollama.Client:
    return ollama.Client(store_served.url, timeout=120)


def upload(client: ollama.Client, path: Path) -> str:
    return client.create_blob(path)


def test_create_from_a_blob(client: ollama.Client, store_served: Served, gguf_file: Path) -> None:
    digest = upload(client, gguf_file)
    lines = [
        line.status
        for line in client.create(
            "mine",
            files={"tiny.gguf": digest},
            template=GO,
            system="Be.",
            license=["MIT", "Other"],
            parameters={"stop": ["<end>", "x"], "temperature": 0.5, "num_ctx": 128, "seed": None},
            messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
            stream=True,
        )
    ]
    assert f"using existing layer {digest}" in lines
    assert lines[-2:] == ["writing manifest", "success"]
    model = find_model("mine", store_served.store)
    assert model.defaults == {"num_ctx": 128, "stop": ["<end>", "x"], "temperature": 0.5}
    assert [turn.content for turn in model.messages] == ["Hi", "Ho"]
    shown = client.show("mine")
    assert shown.parameters is not None
    assert [line.split(maxsplit=1) for line in shown.parameters.splitlines() if line.startswith("stop")] == [
        ["stop", '"<end>"'],
        ["stop", '"x"'],
    ]
    assert shown.license is not None
    assert "Other" in shown.license
    assert client.chat("mine", [{"role": "user", "content": "?"}], options=SHORT).done
    client.copy("mine", "other")
    assert find_model("other", store_served.store).digest == model.digest
    assert client.delete("other").status == "success"


def test_create_from_a_model_with_an_adapter(client: ollama.Client, store_served: Served, tmp_path: Path) -> None:
    lora = write_tiny_lora(tmp_path / "lora.gguf", strength=3.0)
    digest = upload(client, lora)
    answer = client.create("tuned", from_="base", adapters={"lora.gguf": digest}, parameters={"stop": "one"})
    assert answer.status == "success"
    assert find_model("tuned", store_served.store).defaults == {"stop": ["one"]}
    asked: dict[str, Any] = {"prompt": "hello", "options": {"num_predict": 8, "temperature": 0, "stop": []}}
    asked["raw"] = True
    assert client.generate("tuned", **asked).response != client.generate("base", **asked).response
    other = write_tiny_lora(tmp_path / "other.gguf", architecture="qwen2")
    with pytest.raises(ollama.ResponseError, match=r"other\.gguf: is an adapter for qwen2") as caught:
        client.create("bad", from_="base", adapters={"other.gguf": upload(client, other)})
    assert caught.value.status_code == 422


@pytest.mark.slow
def test_create_from_a_checkpoint(client: ollama.Client, store_served: Served, tmp_path: Path) -> None:
    folder = write_causal(tmp_path, "llama")
    files = {path.name: upload(client, path) for path in sorted(folder.iterdir()) if path.is_file()}
    lines = [line.status for line in client.create("folder", files=files, stream=True)]
    assert any(line and "served by torch" in line for line in lines)
    assert find_model("folder", store_served.store).kind == "checkpoint"
    assert client.generate("folder", "hello", options=SHORT).done


def test_create_quantizes(client: ollama.Client, store_served: Served) -> None:
    lines = [line.status or "" for line in client.create("small", from_="base", quantize="q8_0", stream=True)]
    assert "quantizing F32 model to Q8_0" in lines
    model, base = (find_model(name, store_served.store) for name in ("small", "base"))
    assert model.quantization == "Q8_0"
    assert model.size_bytes < base.size_bytes / 2
    assert model.lineage.parent_digest == base.digest
    with pytest.raises(ollama.ResponseError, match="already Q8_0") as caught:
        client.create("smaller", from_="small", quantize="q4_0")
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match=r"unknown quantization 'q9_z'; known: .*Q4_K_M") as caught:
        client.create("smaller", from_="base", quantize="q9_z")
    assert caught.value.status_code == 400


def test_row_22_a_model_is_not_made_from_itself(client: ollama.Client, store_served: Served) -> None:
    before = find_model("base", store_served.store)
    with pytest.raises(ollama.ResponseError, match="not made from itself") as caught:
        client.create("BASE:latest", from_="base", system="S")
    assert caught.value.status_code == 409
    assert find_model("base", store_served.store) == before


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({}, 400, "model"),
        ({"model": "x"}, 400, "neither 'from' nor 'files'"),
        ({"model": "x", "from": "base", "files": {"a": "sha256:" + "0" * 64}}, 400, "not here"),
        ({"model": "x", "files": {"a.gguf": "sha256:../../etc"}}, 400, "a digest is sha256"),
        ({"model": "x", "files": {"../a.gguf": "sha256:" + "0" * 64}}, 400, "not here"),
        ({"model": "x", "from": "/etc/passwd"}, 400, "no model name"),
        ({"model": "x", "from": "./folder"}, 400, "no model name"),
        ({"model": "x", "from": "hf://a/b"}, 400, "no model name"),
        ({"model": "x", "from": "evil.example/a/b"}, 400, "SIZEWISE_REGISTRIES"),
        ({"model": "x", "from": "nothing-like-it"}, 404, "not found"),
        ({"model": "../x", "from": "base"}, 400, "no model name"),
        ({"model": "x", "from": "base", "parameters": {"temprature": 1}}, 400, "did you mean 'temperature'"),
        ({"model": "x", "from": "base", "parameters": {"temperature": "hot"}}, 400, "must be a number"),
        ({"model": "x", "from": "base", "parameters": {"temperature": -1}}, 400, "expected 0"),
        ({"model": "x", "from": "base", "messages": [{"role": "robot", "content": ""}]}, 400, "role"),
        ({"model": "x", "from": "base", "messages": ["hi"]}, 400, "must be an object"),
        ({"model": "x", "from": "base", "template": "{{ if .System }}"}, 400, "not closed"),
        ({"model": "x", "from": "base", "requires": "newest"}, 400, "version"),
        ({"model": "x", "from": "base", "sistem": "S"}, 400, "did you mean 'system'"),
        ({"model": "x", "from": "base", "system": 5}, 400, "must be a string"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_bad_create_requests(store_served: Served, body: dict[str, Any], status: int, part: str, stream: bool) -> None:
    with store_served.client() as http:
        answer = http.post("/api/create", json=body | {"stream": stream})
    assert (answer.status_code, part in answer.json()["error"]) == (status, True), answer.text
    assert "/etc/passwd" not in answer.text or body.get("from") == "/etc/passwd"
    assert str(store_served.home) not in answer.text


def test_what_has_no_effect_is_said(store_served: Served) -> None:
    body = {"model": "x", "from": "base", "renderer": "r", "parameters": {"mirostat": 1}, "stream": False}
    with store_served.client() as http:
        answer = http.post("/api/create", json=body)
        assert "mirostat" in answer.headers["X-Sizewise-Warning"]
        lines = [json.loads(line) for line in http.post("/api/create", json=body | {"stream": True}).text.splitlines()]
    assert answer.json()["status"] == "success"
    assert lines[-1] == answer.json()
    assert any("renderer" in text for text in answer.json()["warnings"])


def test_rows_18_to_21_blobs(store_served: Served) -> None:
    data = random.Random(1).randbytes(3_000_000)
    url = f"/api/blobs/{sha256(data)}"
    blobs = store_served.store.layout.blobs
    with store_served.client() as http:
        assert http.head(url).status_code == 404
        assert http.post(url, content=data[:-1]).status_code == 400
        assert "digest mismatch" in http.post(url, content=data[:-1]).json()["error"]
        assert not store_served.store.blob(sha256(data)).exists()
        assert http.post(url, content=data).status_code == 201
        assert http.post(url, content=data).status_code == 200
        assert http.head(url).status_code == 200
        for digest in ("sha256:../..", "sha256:" + "a" * 63, "sha256:" + "a" * 65, "md5:" + "a" * 64, "a" * 64):
            for verb in ("HEAD", "POST"):
                assert http.request(verb, f"/api/blobs/{digest}").status_code in (400, 404), digest
    assert store_served.store.blob(sha256(data)).read_bytes() == data
    assert not [path for path in blobs.iterdir() if path.name.startswith(".tmp")]


def test_row_20_an_upload_that_is_cut_leaves_nothing(store_served: Served) -> None:
    data = b"x" * 3_000_000
    blobs = store_served.store.layout.blobs
    before = set(blobs.iterdir())
    for chunked in (False, True):
        with store_served.connect() as connection:
            length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {2 * len(data)}"
            head = f"POST /api/blobs/{sha256(data)} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n"
            connection.sendall(head.encode() + (f"{2 * len(data):x}\r\n".encode() if chunked else b"") + data)
            connection.shutdown(socket.SHUT_WR)
            assert not connection.recv(1000).startswith(b"HTTP/1.1 2")
    deadline = threading.Event()
    for _ in range(100):
        if set(blobs.iterdir()) == before:
            break
        deadline.wait(0.05)
    assert set(blobs.iterdir()) == before


def test_pull_tells_its_progress_in_ollamas_words(
    client: ollama.Client, store_served: Served, registry: RegistryServer
) -> None:
    name = f"{registry.host}/library/tiny"
    lines = list(client.pull(name, stream=True))
    words = [line.status or "" for line in lines]
    assert words[0] == "pulling manifest"
    assert words[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    blob = sha256(registry.blobs[find_digest(registry)])
    moved = [line for line in lines if line.digest == blob]
    assert moved
    assert {line.status for line in moved} == {f"pulling {blob[7:19]}"}
    assert moved[-1].completed == moved[-1].total == len(registry.blobs[blob])
    assert find_model(name, store_served.store).system == "Be brief."
    assert client.pull(name).status == "success"
    client.delete(name)


def find_digest(registry: RegistryServer) -> str:
    return max(registry.blobs, key=lambda digest: len(registry.blobs[digest]))


def test_row_27_two_pulls_of_one_model_download_once(store_served: Served, registry: RegistryServer) -> None:
    name = f"{registry.host}/library/tiny"
    answers: list[int] = []

    def pull() -> None:
        with store_served.client() as http:
            answers.append(http.post("/api/pull", json={"model": name, "stream": False}).status_code)

    threads = [threading.Thread(target=pull) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200, 200]
    fetched = [path for _, path, _ in registry.asked if "/blobs/" in path]
    assert len(fetched) == len(set(fetched)) == 3
    with store_served.client() as http:
        assert http.request("DELETE", "/api/delete", json={"model": name}).status_code == 200


def test_a_model_is_pushed_to_a_real_registry_and_comes_back(
    client: ollama.Client, store_served: Served, tmp_path: Path
) -> None:
    with oci_registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/team/base"
        client.copy("base", name)
        lines = list(client.push(name, stream=True))
        words = [line.status or "" for line in lines]
        assert words[0] == "retrieving manifest"
        assert words[-2:] == ["pushing manifest", "success"]
        assert any(line.digest and line.completed == line.total for line in lines)
        before = find_model(name, store_served.store)
        client.delete(name)
        assert client.pull(name).status == "success"
        assert find_model(name, store_served.store).digest == before.digest
    with store_served.client() as http:
        answer = http.post("/api/push", json={"model": name, "stream": False})
        assert answer.status_code == 502
        assert http.post("/api/push", json={"model": "nothing-like-it"}).status_code in (400, 404)


def test_a_client_that_goes_stops_the_work(store_served: Served, registry: RegistryServer) -> None:
    registry.faults, registry.stop_after = {"cut", "stall"}, 1000
    name = f"{registry.host}/library/slow"
    registry.add("slow", {"model": write_tiny_llama(store_served.home / "slow.gguf", seed=3).read_bytes()})
    with store_served.client() as http, http.stream("POST", "/api/pull", json={"model": name}) as answer:
        next(answer.iter_lines())
    registry.release.set()
    threading.Event().wait(1.0)
    assert not any(manifest.name.model == "slow" for manifest in store_served.store.list())
    with store_served.client() as http:
        assert http.post("/api/pull", json={"model": name, "stream": False}).status_code == 200


def test_too_many_jobs_are_told_to_wait(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_running", threading.BoundedSemaphore(1))
    background._running.acquire()
    with open("/dev/null", "w") as nowhere:
        app = create_app(Settings(threads=2), Store(tiny_home / "models"), log=Log(nowhere))
        with TestClient(app, base_url="http://localhost") as http:
            answer = http.post("/api/create", json={"model": "x", "from": "tiny"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
