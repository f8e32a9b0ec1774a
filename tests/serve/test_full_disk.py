"""A disk that is really full while blobs come and models are pulled (row 43, R4): 507, nothing kept, no restart."""

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_servers import RegistryServer, running, sha256
from served import Served, StartServer
from tiny_gguf import write_tiny_llama

ENTER = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNT = 'mount -t tmpfs -o size=8m none "$0" && exec "$@"'


@pytest.fixture
def small(tmp_path: Path, start_server: StartServer) -> Served:
    """A server whose store lies on a file system of 8 MB."""
    if subprocess.run([*ENTER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let us mount a file system of our own")
    store = tmp_path / "models"
    store.mkdir()
    return start_server(tmp_path, within=[*ENTER, "bash", "-c", MOUNT, str(store)], SIZEWISE_REGISTRIES="")


def seen(served: Served) -> Path:
    """The store's folder as the server sees it."""
    return Path(f"/proc/{served.pid}/root{served.store.root}")


def unlike(answer: Any, *words: str) -> list[str]:
    """What keeps an answer from being the refusal of a full disk that has these words."""
    said = answer.json().get("error", "")
    wrong = [f"status {answer.status_code}: {said}"] if answer.status_code != 507 else []
    wrong += ["a client would try again"] if answer.headers.get("x-should-retry") != "false" else []
    wrong += ["names a path"] if "/models" in answer.text else []
    return wrong + [f"no {word!r} in {said!r}" for word in ("make room", *words) if word not in said]


def test_uploads_and_pulls_onto_a_full_disk(small: Served, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(3_000_000)
    weights = write_tiny_llama(tmp_path / "big.gguf", width=256, layers=3).read_bytes()
    assert 2_000_000 < len(weights) < 4_000_000
    root, url = seen(small), f"/api/blobs/{sha256(data)}"
    with running(RegistryServer()) as registry, small.client() as http:
        assert isinstance(registry, RegistryServer)
        registry.add("big", {"model": weights})
        asked = {"model": f"{registry.host}/library/big", "stream": False}
        assert http.head(url).status_code == 404  # the folders are there now
        (root / "ballast").write_bytes(bytes(7_000_000))
        assert not unlike(http.post(url, content=data), "needs", "free")  # told by its length, before it is written

        def chunks() -> Iterator[bytes]:
            yield from (data[at : at + 50_000] for at in range(0, len(data), 50_000))

        assert not unlike(http.post(url, content=chunks()), "full")
        assert not unlike(http.post("/api/pull", json=asked), "needs", "free")
        lines = http.post("/api/pull", json=asked | {"stream": True})
        assert "make room" in json.loads(lines.text.splitlines()[-1])["error"]
        kept = [path for path in root.rglob("*") if path.is_file() and path.name != "ballast"]
        assert sum(path.stat().st_size for path in kept) < 10_000, kept
        (root / "ballast").unlink()
        assert http.post(url, content=chunks()).status_code == 201
        assert http.post("/api/pull", json=asked).json() == {"status": "success"}
        said = {"model": asked["model"], "prompt": "a", "stream": False, "options": {"num_predict": 2}}
        assert http.post("/api/generate", json=said).status_code == 200
