"""What a hostile caller, registry or file tries on create, blobs, pull and push: reliability.md S1, S2, S3, S7."""

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from bad_files import bad_ggufs, mutations
from loopback_servers import RegistryServer, Server, running, sha256
from served import Served
from starlette.testclient import TestClient
from tiny_gguf import write_tiny_llama

from sizewise.core.recipe import Lineage
from sizewise.load.models import save_model
from sizewise.load.store.store import Store
from sizewise.serve.access_log import Log
from sizewise.serve.app import create_app
from sizewise.serve.settings import Settings

SHORT: dict[str, Any] = {"num_predict": 4, "temperature": 0}


def test_s3_pulls_and_pushes_go_only_where_they_may(store_served: Served) -> None:
    with running(Server()) as canary, store_served.client() as http:
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
def test_s2_a_rogue_registry_leads_nowhere(store_served: Served, registry: RegistryServer, fault: str) -> None:
    with running(Server()) as canary, store_served.client() as http:
        registry.faults, registry.elsewhere = {fault}, canary.url.replace("127.0.0.1", "evil.example")
        answer = http.post("/api/pull", json={"model": f"{registry.host}/library/tiny", "stream": False})
        assert answer.status_code in (400, 502)
        assert canary.asked == []
    assert "library/tiny" not in str([manifest.name for manifest in store_served.store.list()])


@pytest.mark.parametrize(("fault", "status"), [("wrong_bytes", 502), ("long", 502), ("huge_manifest", 502)])
def test_s2_what_a_registry_sends_is_checked(
    store_served: Served, registry: RegistryServer, fault: str, status: int, gguf_file: Path
) -> None:
    registry.faults = {fault}
    registry.add("odd", {"model": write_tiny_llama(gguf_file.with_name("odd.gguf"), seed=9).read_bytes()})
    with store_served.client() as http:
        answer = http.post("/api/pull", json={"model": f"{registry.host}/library/odd", "stream": False})
    assert answer.status_code == status, answer.text
    assert registry.sent < 6_000_000
    assert not any(manifest.name.model == "odd" for manifest in store_served.store.list())


def test_s2_digests_that_are_paths_or_occur_twice(store_served: Served, registry: RegistryServer) -> None:
    for number, change in enumerate(({"digest": "sha256:../../../canary"}, {"size": 1}, {})):
        parts = {"system": b"Twice."} if number == 2 else {"model": b"GGUF", "system": b"Twice."}
        body = registry.add(f"bad{number}", parts)
        body["layers"].append(body["layers"][0] | change)
        registry.manifests[f"library/bad{number}/latest"] = json.dumps(body).encode()
        with store_served.client() as http:
            answer = http.post("/api/pull", json={"model": f"{registry.host}/library/bad{number}", "stream": False})
        assert answer.status_code in (400, 422, 502), answer.text
        assert not any(manifest.name.model == f"bad{number}" for manifest in store_served.store.list())


def test_row_29_a_manifest_of_a_million_layers(store_served: Served, registry: RegistryServer) -> None:
    """Of a hundred megabytes one is read; of a megabyte with as many layers as it holds, none is fetched twice."""
    layer = b'{"mediaType":"application/vnd.ollama.image.system","digest":"sha256:%064d","size":1}'
    head = registry.manifests["library/tiny/latest"].split(b'"layers"')[0] + b'"layers": ['
    registry.manifests["library/million/latest"] = head + b",".join([layer % 7] * 10**6) + b"]}"
    registry.manifests["library/many/latest"] = head + b",".join(layer % number for number in range(8000)) + b"]}"
    server = psutil.Process(store_served.pid)
    with store_served.client() as http:
        http.post("/api/show", json={"model": "base"})
        before = server.memory_info().rss
        for name in ("million", "many"):
            begun = time.monotonic()
            answer = http.post("/api/pull", json={"model": f"{registry.host}/library/{name}", "stream": False})
            assert answer.status_code in (422, 502), answer.text
            assert time.monotonic() - begun < 20  # a second on an idle machine
        assert server.memory_info().rss - before < 64 * 2**20
    assert not any(manifest.name.model in ("million", "many") for manifest in store_served.store.list())


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
def test_rows_63_to_65_bad_ggufs(store_served: Served, label: str, data: bytes) -> None:
    with store_served.client() as http:
        assert http.post(f"/api/blobs/{sha256(data)}", content=data).status_code in (200, 201)
        body = {"model": "bad", "files": {"bad.gguf": sha256(data)}, "stream": False}
        answer = http.post("/api/create", json=body)
        assert answer.status_code == 422, answer.text
        assert "bad.gguf" in answer.json()["error"]
        assert str(store_served.home) not in answer.text
        assert http.post("/api/show", json={"model": "bad"}).status_code == 404
        assert http.get("/health").status_code == 200


@pytest.mark.slow
def test_s7_mutations_loaded_in_the_child(store_served: Served, gguf_file: Path) -> None:
    """What passes the check in Python is loaded by the engine: an answer or a typed error, and the server lives."""
    pid, statuses = store_served.pid, []
    with store_served.client() as http:
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
    assert store_served.pid == pid
    assert store_served.process.poll() is None
    assert 422 in statuses
