"""Pulling from the Hugging Face hub's protocol, on this machine, with the hub's own client library."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_servers import HubServer, running, sha256
from tiny_models import write_checkpoint, write_gguf

from sizewise.core.errors import BadModel, DigestMismatch, DiskFull, UnknownName, Unreachable, Unsafe, UsageError
from sizewise.core.events import Progress
from sizewise.load.models import find_model
from sizewise.load.pull import pull
from sizewise.load.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with a checkpoint, a GGUF repository and one of pickles."""
    checkpoint = write_checkpoint(tmp_path / "ckpt")
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    repos = {
        "org/tiny": files | {"README.md": b"# Tiny", "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"other"},
        "org/tiny-gguf": {"tiny-Q4_1.gguf": write_gguf(tmp_path / "m.gguf", rows=512).read_bytes(), "x.gguf": b"GGUF"},
        "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
        "org/code": files | {"config.json": b'{"model_type": "x", "auto_map": {"AutoModel": "evil.Model"}}'},
        "org/gated": files,
    }
    with running(HubServer(repos=repos, gated={"org/gated"})) as found:
        assert isinstance(found, HubServer)
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        yield found


def left_over(store: Store) -> list[Path]:
    return (
        [path for path in store.layout.incoming.rglob("*") if path.is_file()] if store.layout.incoming.exists() else []
    )


def test_a_repository_becomes_a_checkpoint(store: Store, server: HubServer, tmp_path: Path) -> None:
    heard: list[Progress] = []
    model = pull("hf://org/tiny", store=store, listen=heard.append)
    assert (model.name, model.kind, model.license) == ("org/tiny", "checkpoint", "mit")
    assert set(model.files) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert model.lineage.source == "hf://org/tiny"
    assert model.lineage.note == "commit " + "c" * 40
    assert model.digest == find_model(str(tmp_path / "ckpt"), store).digest
    assert not [path for _, path, _ in server.asked if path.endswith((".bin", ".onnx"))]
    assert any(progress.what == "model.safetensors" and progress.done == progress.total for progress in heard)
    assert left_over(store) == []
    assert store.verify() == []
    server.asked.clear()
    assert pull("hf://org/tiny", store=store) == model
    assert server.asked == []


def test_a_file_becomes_a_gguf_model(store: Store, server: HubServer) -> None:
    model = pull("hf://org/tiny-gguf@main/tiny-Q4_1.gguf", store=store)
    assert (model.name, model.kind) == ("org/tiny:q4_1", "gguf")
    assert model.digest == sha256(server.repos["org/tiny-gguf"]["tiny-Q4_1.gguf"])
    assert find_model("hf://org/tiny-gguf/tiny-Q4_1.gguf", store) == model


def test_linked_files_stay_in_the_hubs_cache(store: Store, server: HubServer, tmp_path: Path) -> None:
    model = pull("hf://org/tiny", store=store, link=True)
    assert all(path.is_symlink() for path in model.files.values())
    assert all(path.resolve().is_relative_to(tmp_path / "hub-cache") for path in model.files.values())
    assert store.verify() == []
    model.files["model.safetensors"].resolve().unlink()
    with pytest.raises(Exception, match="gone"):
        find_model(model.name, store)
    assert pull("hf://org/tiny", store=store, link=True).digest == model.digest


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("hf://org/pickled", Unsafe, "only pickled weights"),
        ("hf://org/code", Unsafe, "auto_map"),
        ("hf://org/gated", UsageError, "HF_TOKEN"),
        ("hf://org/absent", UnknownName, "no repository on the hub named 'org/absent'"),
        ("hf://org/tiny@v9", UnknownName, "no revision of org/tiny named 'v9'"),
        ("hf://org/tiny-gguf/tiny-Q4_2.gguf", UnknownName, "did you mean 'tiny-Q4_1.gguf'"),
        ("hf://org/tiny-gguf", UsageError, "name one, for example hf://org/tiny-gguf/tiny-Q4_1.gguf"),
        ("hf://org/tiny/config.json", UsageError, "only if it is GGUF"),
        ("hf://org/tiny-gguf/x.gguf", BadModel, "x.gguf"),
    ],
)
def test_what_cannot_be_pulled_is_said(
    store: Store, server: HubServer, reference: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        pull(reference, store=store)
    assert "\n" not in str(caught.value)
    assert store.list() == []
    assert store.verify() == []


def test_a_token_opens_a_gated_repository(store: Store, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from sizewise.load.pull import pull; print(pull('hf://org/gated').name)"
    environment = {"HF_TOKEN": "hf_test", "SIZEWISE_MODELS": str(store.root), "HF_ENDPOINT": server.url}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "org/gated", done.stderr
    assert any(headers.get("Authorization", headers.get("authorization")) for _, _, headers in server.asked)


def test_a_hub_that_fails_or_is_gone_is_unreachable(
    store: Store, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults = {"status_500"}
    with pytest.raises(Unreachable, match="500"):
        pull("hf://org/tiny", store=store)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="does not answer") as caught:
        pull("hf://org/tiny", store=store)
    assert "\n" not in str(caught.value)


def test_bytes_that_were_not_promised_are_not_kept(store: Store, server: HubServer) -> None:
    server.faults = {"wrong_bytes"}
    with pytest.raises((DigestMismatch, BadModel)):
        pull("hf://org/tiny-gguf/tiny-Q4_1.gguf", store=store)
    assert store.list() == []
    assert left_over(store) == []
    server.faults = set()
    pull("hf://org/tiny-gguf/tiny-Q4_1.gguf", store=store)
    assert store.verify() == []


@pytest.mark.parametrize("faults", [{"cut"}, {"cut", "no_range"}])
def test_a_cut_connection_is_taken_up_again(store: Store, server: HubServer, faults: set[str]) -> None:
    server.faults = faults
    model = pull("hf://org/tiny-gguf/tiny-Q4_1.gguf", store=store)
    assert server.cuts == 1
    assert model.digest == sha256(server.repos["org/tiny-gguf"]["tiny-Q4_1.gguf"])


def test_too_little_room_is_said_before_anything_is_fetched(
    store: Store, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage)
    with pytest.raises(DiskFull, match="has 1 kB free"):
        pull("hf://org/tiny-gguf/tiny-Q4_1.gguf", store=store)
    assert not [path for _, path, _ in server.asked if "/resolve/" in path]
