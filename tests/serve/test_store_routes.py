"""create, blobs, pull and push over HTTP: the unmodified `ollama` package, and what nobody should send."""

import hashlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ollama
import pytest
from bad_files import bad_ggufs, mutations
from loopback_servers import RegistryServer, Server, running, sha256
from oci_registry import oci_registry
from served import Served, launch
from starlette.testclient import TestClient
from tiny_checkpoint import write_causal
from tiny_gguf import write_tiny_llama, write_tiny_lora

from sizewise.core.recipe import Lineage
from sizewise.load.models import find_model, save_model
from sizewise.load.store.store import Store
from sizewise.serve import background
from sizewise.serve.access_log import Log
from sizewise.serve.app import create_app
from sizewise.serve.settings import Settings

GO = "{{ if .System }}<<{{ .System }}>> {{ end }}{{ .Prompt }} {{ .Response }}"
SHORT: dict[str, Any] = {"num_predict": 4, "temperature": 0}
CUSTOM = {"SIZEWISE_REGISTRIES": ""}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store-routes")


@pytest.fixture(scope="module")
def gguf_file(home: Path) -> Path:
    return write_tiny_llama(home / "tiny.gguf")


@pytest.fixture(scope="module")
def served(home: Path, gguf_file: Path) -> Iterator[Served]:
    save_model("base", "gguf", {"m": gguf_file}, lineage=Lineage(recipe=None), store=Store(home / "models"))
    found = launch(home, SIZEWISE_REGISTRIES="")
    yield found
    found.stop()


@pytest.fixture
def client(served: Served) -> ollama.Client:
    return ollama.Client(served.url, timeout=120)


def upload(client: ollama.Client, path: Path) -> str:
    return client.create_blob(path)


def test_create_from_a_blob(client: ollama.Client, served: Served, gguf_file: Path) -> None:
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
    model = find_model("mine", served.store)
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
    assert find_model("other", served.store).digest == model.digest
    assert client.delete("other").status == "success"


def test_create_from_a_model_with_an_adapter(client: ollama.Client, served: Served, tmp_path: Path) -> None:
    lora = write_tiny_lora(tmp_path / "lora.gguf", strength=3.0)
    digest = upload(client, lora)
    answer = client.create("tuned", from_="base", adapters={"lora.gguf": digest}, parameters={"stop": "one"})
    assert answer.status == "success"
    assert find_model("tuned", served.store).defaults == {"stop": ["one"]}
    asked: dict[str, Any] = {"prompt": "hello", "options": {"num_predict": 8, "temperature": 0, "stop": []}}
    asked["raw"] = True
    assert client.generate("tuned", **asked).response != client.generate("base", **asked).response
    other = write_tiny_lora(tmp_path / "other.gguf", architecture="qwen2")
    with pytest.raises(ollama.ResponseError, match=r"other\.gguf: is an adapter for qwen2") as caught:
        client.create("bad", from_="base", adapters={"other.gguf": upload(client, other)})
    assert caught.value.status_code == 422


@pytest.mark.slow
def test_create_from_a_checkpoint(client: ollama.Client, served: Served, tmp_path: Path) -> None:
    folder = write_causal(tmp_path, "llama")
    files = {path.name: upload(client, path) for path in sorted(folder.iterdir()) if path.is_file()}
    lines = [line.status for line in client.create("folder", files=files, stream=True)]
    assert any(line and "served by torch" in line for line in lines)
    assert find_model("folder", served.store).kind == "checkpoint"
    assert client.generate("folder", "hello", options=SHORT).done


def test_create_quantizes(client: ollama.Client, served: Served) -> None:
    lines = [line.status or "" for line in client.create("small", from_="base", quantize="q8_0", stream=True)]
    assert "quantizing F32 model to Q8_0" in lines
    model, base = (find_model(name, served.store) for name in ("small", "base"))
    assert model.quantization == "Q8_0"
    assert model.size_bytes < base.size_bytes / 2
    assert model.lineage.parent_digest == base.digest
    with pytest.raises(ollama.ResponseError, match="already Q8_0") as caught:
        client.create("smaller", from_="small", quantize="q4_0")
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match=r"unknown quantization 'q9_z'; known: .*Q4_K_M") as caught:
        client.create("smaller", from_="base", quantize="q9_z")
    assert caught.value.status_code == 400


def test_row_22_a_model_is_not_made_from_itself(client: ollama.Client, served: Served) -> None:
    before = find_model("base", served.store)
    with pytest.raises(ollama.ResponseError, match="not made from itself") as caught:
        client.create("BASE:latest", from_="base", system="S")
    assert caught.value.status_code == 409
    assert find_model("base", served.store) == before


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
def test_bad_create_requests(served: Served, body: dict[str, Any], status: int, part: str, stream: bool) -> None:
    with served.client() as http:
        answer = http.post("/api/create", json=body | {"stream": stream})
    assert (answer.status_code, part in answer.json()["error"]) == (status, True), answer.text
    assert "/etc/passwd" not in answer.text or body.get("from") == "/etc/passwd"
    assert str(served.home) not in answer.text


def test_what_has_no_effect_is_said(served: Served) -> None:
    body = {"model": "x", "from": "base", "renderer": "r", "parameters": {"mirostat": 1}, "stream": False}
    with served.client() as http:
        answer = http.post("/api/create", json=body)
        assert "mirostat" in answer.headers["X-Sizewise-Warning"]
        lines = [json.loads(line) for line in http.post("/api/create", json=body | {"stream": True}).text.splitlines()]
    assert answer.json()["status"] == "success"
    assert lines[-1] == answer.json()
    assert any("renderer" in text for text in answer.json()["warnings"])


def test_rows_18_to_21_blobs(served: Served) -> None:
    data = random.Random(1).randbytes(3_000_000)
    url = f"/api/blobs/{sha256(data)}"
    blobs = served.store.layout.blobs
    with served.client() as http:
        assert http.head(url).status_code == 404
        assert http.post(url, content=data[:-1]).status_code == 400
        assert "digest mismatch" in http.post(url, content=data[:-1]).json()["error"]
        assert not served.store.blob(sha256(data)).exists()
        assert http.post(url, content=data).status_code == 201
        assert http.post(url, content=data).status_code == 200
        assert http.head(url).status_code == 200
        for digest in ("sha256:../..", "sha256:" + "a" * 63, "sha256:" + "a" * 65, "md5:" + "a" * 64, "a" * 64):
            for verb in ("HEAD", "POST"):
                assert http.request(verb, f"/api/blobs/{digest}").status_code in (400, 404), digest
    assert served.store.blob(sha256(data)).read_bytes() == data
    assert not [path for path in blobs.iterdir() if path.name.startswith(".tmp")]


def test_row_20_an_upload_that_is_cut_leaves_nothing(served: Served) -> None:
    data = b"x" * 3_000_000
    blobs = served.store.layout.blobs
    before = set(blobs.iterdir())
    for chunked in (False, True):
        with served.connect() as connection:
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


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with running(RegistryServer()) as found:
        assert isinstance(found, RegistryServer)
        weights = write_tiny_llama(tmp_path / "tiny.gguf", seed=random.SystemRandom().randrange(2**32))
        found.add("tiny", {"model": weights.read_bytes(), "system": b"Be brief."})
        yield found


def test_pull_tells_its_progress_in_ollamas_words(
    client: ollama.Client, served: Served, registry: RegistryServer
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
    assert find_model(name, served.store).system == "Be brief."
    assert client.pull(name).status == "success"
    client.delete(name)


def find_digest(registry: RegistryServer) -> str:
    return max(registry.blobs, key=lambda digest: len(registry.blobs[digest]))


def test_row_27_two_pulls_of_one_model_download_once(served: Served, registry: RegistryServer) -> None:
    name = f"{registry.host}/library/tiny"
    answers: list[int] = []

    def pull() -> None:
        with served.client() as http:
            answers.append(http.post("/api/pull", json={"model": name, "stream": False}).status_code)

    threads = [threading.Thread(target=pull) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200, 200]
    fetched = [path for _, path, _ in registry.asked if "/blobs/" in path]
    assert len(fetched) == len(set(fetched)) == 3
    with served.client() as http:
        assert http.request("DELETE", "/api/delete", json={"model": name}).status_code == 200


def test_s3_pulls_and_pushes_go_only_where_they_may(served: Served) -> None:
    with running(Server()) as canary, served.client() as http:
        port = canary.host.rpartition(":")[2]
        forms = [
            f"http://{canary.host}/a/b",
            f"https://{canary.host}\\@evil.example/a/b",
            "file:///etc/passwd",
            f"gopher://{canary.host}/a/b",
            f"2130706433:{port}/a/b",
            f"0x7f000001:{port}/a/b",
            f"[::ffff:127.0.0.1]:{port}/a/b",
            f"127.1:{port}/a/b",
            f"localhost.evil.example:{port}/a/b",
            f"user:pw@127.0.0.1:{port}/a/b",
            f"0.0.0.0:{port}/a/b",
            "evil.example/a/b",
        ]
        for form in forms:
            for path in ("/api/pull", "/api/push"):
                for stream in (True, False):
                    answer = http.post(path, json={"model": form, "stream": stream})
                    assert answer.status_code == 400, (form, answer.text)
        assert http.post("/api/pull", json={"model": "nothing-like-it"}).status_code == 404
        assert canary.asked == []


@pytest.mark.parametrize("fault", ["redirect", "foreign_auth"])
def test_s2_a_rogue_registry_leads_nowhere(served: Served, registry: RegistryServer, fault: str) -> None:
    with running(Server()) as canary, served.client() as http:
        registry.faults, registry.elsewhere = {fault}, canary.url.replace("127.0.0.1", "evil.example")
        answer = http.post("/api/pull", json={"model": f"{registry.host}/library/tiny", "stream": False})
        assert answer.status_code in (400, 502)
        assert canary.asked == []
    assert "library/tiny" not in str([manifest.name for manifest in served.store.list()])


@pytest.mark.parametrize(("fault", "status"), [("wrong_bytes", 502), ("long", 502), ("huge_manifest", 502)])
def test_s2_what_a_registry_sends_is_checked(
    served: Served, registry: RegistryServer, fault: str, status: int, gguf_file: Path
) -> None:
    registry.faults = {fault}
    registry.add("odd", {"model": write_tiny_llama(gguf_file.with_name("odd.gguf"), seed=9).read_bytes()})
    with served.client() as http:
        answer = http.post("/api/pull", json={"model": f"{registry.host}/library/odd", "stream": False})
    assert answer.status_code == status, answer.text
    assert registry.sent < 6_000_000
    assert not any(manifest.name.model == "odd" for manifest in served.store.list())


def test_s2_digests_that_are_paths_or_occur_twice(served: Served, registry: RegistryServer) -> None:
    for number, change in enumerate(({"digest": "sha256:../../../canary"}, {"size": 1}, {})):
        parts = {"system": b"Twice."} if number == 2 else {"model": b"GGUF", "system": b"Twice."}
        body = registry.add(f"bad{number}", parts)
        body["layers"].append(body["layers"][0] | change)
        registry.manifests[f"library/bad{number}/latest"] = json.dumps(body).encode()
        with served.client() as http:
            answer = http.post("/api/pull", json={"model": f"{registry.host}/library/bad{number}", "stream": False})
        assert answer.status_code in (400, 422, 502), answer.text
        assert not any(manifest.name.model == f"bad{number}" for manifest in served.store.list())


def test_a_model_is_pushed_to_a_real_registry_and_comes_back(
    client: ollama.Client, served: Served, tmp_path: Path
) -> None:
    with oci_registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/team/base"
        client.copy("base", name)
        lines = list(client.push(name, stream=True))
        words = [line.status or "" for line in lines]
        assert words[0] == "retrieving manifest"
        assert words[-2:] == ["pushing manifest", "success"]
        assert any(line.digest and line.completed == line.total for line in lines)
        before = find_model(name, served.store)
        client.delete(name)
        assert client.pull(name).status == "success"
        assert find_model(name, served.store).digest == before.digest
    with served.client() as http:
        answer = http.post("/api/push", json={"model": name, "stream": False})
        assert answer.status_code == 502
        assert http.post("/api/push", json={"model": "nothing-like-it"}).status_code in (400, 404)


def test_a_client_that_goes_stops_the_work(served: Served, registry: RegistryServer) -> None:
    registry.faults, registry.stop_after = {"cut", "stall"}, 1000
    name = f"{registry.host}/library/slow"
    registry.add("slow", {"model": write_tiny_llama(served.home / "slow.gguf", seed=3).read_bytes()})
    with served.client() as http, http.stream("POST", "/api/pull", json={"model": name}) as answer:
        next(answer.iter_lines())
    registry.release.set()
    threading.Event().wait(1.0)
    assert not any(manifest.name.model == "slow" for manifest in served.store.list())
    with served.client() as http:
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


def canary_tree(folder: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        sha.update(str(path.relative_to(folder)).encode())
        sha.update(path.read_bytes() if path.is_file() else b"")
    return sha.hexdigest()


_PIECES = [
    *("..", ".", "/", "\\", "%2e%2e", "%2f", ":", "@", "a", "library", "latest", "sha256:", "sha256-", "~", "C:"),
    *("\0", "\n", "\u202e", "😀", "x" * 81, "x" * 300, "con", "etc/passwd", "ä", " ", "-", "?", "#", "*"),
]


def _odd(rng: random.Random) -> str:
    return "".join(rng.choice(_PIECES) for _ in range(rng.randrange(1, 7)))


def test_s1_two_thousand_names_and_digests(tmp_path: Path) -> None:
    """Names of every door over HTTP; the store and a tree beside it must be as they were."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "canary").write_text("here")
    store = Store(tmp_path / "store" / "models")
    save_model("base", "gguf", {"m": write_tiny_llama(tmp_path / "b.gguf")}, lineage=Lineage(recipe=None), store=store)
    before, rng, seen = canary_tree(tmp_path), random.Random(11), set()
    with open("/dev/null", "w") as nowhere:
        app = create_app(Settings(threads=2), store, log=Log(nowhere))
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as http:
            for number in range(2000):
                text = _odd(rng)
                answer = _door(http, number % 8, text)
                seen.add(answer.status_code)
                assert answer.status_code in (400, 404), (number % 8, text, answer.status_code, answer.text)
    assert seen == {400, 404}
    assert canary_tree(tmp_path) == before


def _door(http: TestClient, door: int, text: str) -> Any:
    good = "sha256:" + "0" * 64
    if door == 0:
        return http.post("/api/show", json={"model": text})
    if door == 1:
        return http.post("/api/pull", json={"model": text, "stream": False})
    if door == 2:
        return http.post("/api/create", json={"model": "x", "from": text})
    if door == 3:
        return http.post("/api/create", json={"model": "x", "files": {text: good}})
    if door == 4:
        return http.post("/api/create", json={"model": "x", "files": {"a.gguf": text}})
    if door == 5:
        return http.request("DELETE", "/api/delete", json={"model": text})
    if door == 6:
        return http.post("/api/copy", json={"source": text, "destination": text})
    return http.post("/api/blobs/" + quote(text, safe="" if len(text) % 2 else "/%"), json={})


@pytest.mark.parametrize(("label", "data"), bad_ggufs(), ids=[label for label, _ in bad_ggufs()])
def test_rows_63_to_65_bad_ggufs(served: Served, label: str, data: bytes) -> None:
    with served.client() as http:
        assert http.post(f"/api/blobs/{sha256(data)}", content=data).status_code in (200, 201)
        body = {"model": "bad", "files": {"bad.gguf": sha256(data)}, "stream": False}
        answer = http.post("/api/create", json=body)
        assert answer.status_code == 422, answer.text
        assert "bad.gguf" in answer.json()["error"]
        assert str(served.home) not in answer.text
        assert http.post("/api/show", json={"model": "bad"}).status_code == 404
        assert http.get("/health").status_code == 200


@pytest.mark.slow
def test_s7_mutations_loaded_in_the_child(served: Served, gguf_file: Path) -> None:
    """What passes the check in Python is loaded by the engine: an answer or a typed error, and the server lives."""
    pid, statuses = served.pid, []
    with served.client() as http:
        for data in mutations(gguf_file.read_bytes(), 40, seed=5):
            http.post(f"/api/blobs/{sha256(data)}", content=data)
            body = {"model": "mutant", "files": {"m.gguf": sha256(data)}, "stream": False}
            made = http.post("/api/create", json=body)
            statuses.append(made.status_code)
            assert made.status_code in (200, 400, 422), made.text
            if made.status_code == 200:
                asked = {"model": "mutant", "prompt": "a", "options": SHORT, "stream": False, "keep_alive": 0}
                answer = http.post("/api/generate", json=asked)
                assert answer.status_code in (200, 400, 422, 500, 503, 507), answer.text
        assert http.post("/api/generate", json={"model": "base", "prompt": "a", "options": SHORT}).status_code == 200
    assert served.pid == pid
    assert served.process.poll() is None
    assert 422 in statuses
