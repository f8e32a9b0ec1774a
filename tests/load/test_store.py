"""The store: Ollama's layout both ways, all or nothing, files used in place, names in any case."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.core.errors import (
    BadModel,
    DigestMismatch,
    SizewiseError,
    StorageError,
    UnknownName,
    Unsafe,
    UsageError,
)
from sizewise.core.references import NameRef, parse_name
from sizewise.load.store.layout import check_digest, check_file_name
from sizewise.load.store.store import Layer, Store

WEIGHTS = "application/vnd.ollama.image.model"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def save(store: Store, name: str, data: bytes = b"weights") -> str:
    digest, size = store.add_bytes(data)
    store.put(parse_name(name), {"model_format": "gguf"}, [Layer(WEIGHTS, digest, size)])
    return digest


def write_ollama(root: Path, place: str, parts: dict[str, bytes], *, link: bool = False) -> bytes:
    """Write a model by hand as Ollama does. `link`: as 0.40 does, the name being a link to the manifest's blob."""
    blobs = root / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(data)
        return f"sha256:{digest}"

    def layer(kind: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": blob(data), "size": len(data)}

    config = json.dumps({"model_format": "gguf", "model_family": "llama", "model_type": "1.2B"}).encode()
    body = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": layer("config", config) | {"mediaType": "application/vnd.docker.container.image.v1+json"},
        "layers": [layer(kind, data) for kind, data in parts.items()],
    }
    data = json.dumps(body).encode() + b"\n"
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target = blobs / blob(data).replace(":", "-")
        path.symlink_to(os.path.relpath(target, path.parent))
    else:
        path.write_bytes(data)
    return data


def test_what_we_write_is_what_ollama_reads(store: Store) -> None:
    digest = save(store, "Team/Model:Q4")
    path = store.root / "manifests/registry.ollama.ai/team/model/q4"
    body = json.loads(path.read_bytes())
    assert (body["schemaVersion"], body["layers"][0]["digest"]) == (2, digest)
    assert body["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    for layer in (*body["layers"], body["config"]):
        blob = store.root / "blobs" / layer["digest"].replace(":", "-")
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == layer["digest"][7:]
        assert blob.stat().st_size == layer["size"]


@pytest.mark.parametrize(
    ("place", "link"),
    [
        ("manifests/registry.ollama.ai/library/tiny/latest", False),
        ("manifests/registry.ollama.ai/Library/Tiny/LATEST", False),
        ("manifests/ollama.com/library/tiny/latest", False),
        ("manifests-v2/ollama.com/library/tiny/latest", True),
    ],
)
def test_what_ollama_writes_is_found(store: Store, place: str, link: bool) -> None:
    data = write_ollama(store.root, place, {"model": b"weights", "params": b"{}"}, link=link)
    manifest = store.get(parse_name("tiny"))
    assert manifest.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert [layer.media_type.rpartition(".")[2] for layer in manifest.layers] == ["model", "params"]
    assert manifest.config["model_family"] == "llama"
    assert [str(found.name) for found in store.list()] == ["tiny:latest"]
    assert store.verify() == []
    assert store.collect_garbage(grace_s=-1) == []
    store.remove(parse_name("TINY"))
    assert store.list() == []


def test_a_newer_ollamas_name_hides_an_older_one_until_we_write(store: Store) -> None:
    write_ollama(store.root, "manifests/registry.ollama.ai/library/tiny/latest", {"model": b"old"})
    write_ollama(store.root, "manifests-v2/ollama.com/library/tiny/latest", {"model": b"new"}, link=True)
    assert store.get(parse_name("tiny")).layers[0].digest == "sha256:" + hashlib.sha256(b"new").hexdigest()
    digest = save(store, "tiny", b"ours")
    assert store.get(parse_name("tiny")).layers[0].digest == digest
    assert not (store.root / "manifests-v2/ollama.com/library/tiny/latest").is_symlink()


def test_a_list_of_builds_gives_the_gguf_build(store: Store) -> None:
    data = write_ollama(store.root, "manifests/registry.ollama.ai/library/child/latest", {"model": b"gguf"})
    child, size = store.add_bytes(data)
    other, _ = store.add_bytes(b'{"config": {}}')
    body = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.ollama.manifest.list.v2+json",
        "manifests": [{"digest": other, "runner": "mlx"}, {"digest": child, "runner": "ggml", "size": size}],
    }
    path = store.root / "manifests-v2/ollama.com/library/many/latest"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(body))
    assert store.get(parse_name("many")).digest == child


def test_an_equal_blob_is_stored_once_and_a_copy_shares_it(store: Store) -> None:
    digest = save(store, "one")
    save(store, "two")
    store.copy(parse_name("one"), parse_name("three:v1"))
    assert [str(found.name) for found in store.list()] == ["one:latest", "three:v1", "two:latest"]
    store.remove(parse_name("one"))
    store.remove(parse_name("two"))
    assert store.blob(digest).is_file()
    store.remove(parse_name("three:v1"))
    assert not store.blob(digest).exists()
    assert list(store.layout.blobs.iterdir()) == []


def test_an_unknown_name_gets_the_nearest_and_the_remedy(store: Store) -> None:
    save(store, "smollm2")
    with pytest.raises(UnknownName, match=r"did you mean 'smollm2:latest'.*sizewise pull") as caught:
        store.get(parse_name("smolm2"))
    assert caught.value.nearest == "smollm2:latest"
    with pytest.raises(UnknownName):
        store.remove(parse_name("smolm2"))
    with pytest.raises(UnknownName):
        store.copy(parse_name("smolm2"), parse_name("x"))


def test_a_name_never_gets_a_manifest_whose_blob_is_missing(store: Store) -> None:
    absent = Layer(WEIGHTS, "sha256:" + "0" * 64, 3)
    with pytest.raises(StorageError, match="missing"):
        store.put(parse_name("m"), {}, [absent])
    assert store.list() == []


def test_a_file_with_another_digest_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    for link in (False, True):
        with pytest.raises(DigestMismatch):
            store.add_file(tmp_path / "f", expected="sha256:" + "0" * 64, link=link)
    assert not list(store.layout.blobs.glob("*"))


def test_a_pipe_or_folder_is_no_file(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SizewiseError):
            store.add_file(path)
    with pytest.raises(StorageError):
        store.add_file(tmp_path / "absent")


def test_moving_takes_the_file_away(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    digest, size = store.add_file(tmp_path / "f", move=True)
    assert (store.blob(digest).read_bytes(), size, (tmp_path / "f").exists()) == (b"data", 4, False)


def test_a_linked_file_is_not_copied_and_its_change_is_noticed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    digest, size = store.add_file(path, link=True)
    store.put(parse_name("m"), {}, [Layer(WEIGHTS, digest, size)])
    assert store.blob(digest).is_symlink()
    assert store.verify() == []
    path.write_bytes(b"WEIGHTS")
    os.utime(path, (1, 1))
    assert [problem.kind for problem in store.verify(deep=False)] == ["link"]
    path.unlink()
    assert [problem.kind for problem in store.verify(deep=False)] == ["link"]
    store.remove(parse_name("m"))
    assert not list(store.layout.links.iterdir())


def test_the_digest_of_a_file_elsewhere_is_remembered_until_it_changes(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"data")
    os.utime(path, (time.time() - 100,) * 2)
    heard: list[float] = []
    first = store.digest_file(path, lambda progress: heard.append(progress.done))
    assert store.digest_file(path, lambda progress: heard.append(progress.done)) == first
    assert heard == [4]
    path.write_bytes(b"DATA")
    assert store.digest_file(path) == "sha256:" + hashlib.sha256(b"DATA").hexdigest()


def test_a_torn_manifest_hides_no_other_model_and_stops_the_collection(store: Store) -> None:
    digest = save(store, "good")
    torn = store.root / "manifests/registry.ollama.ai/library/torn/latest"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"")
    assert [str(found.name) for found in store.list()] == ["good:latest"]
    with pytest.raises(BadModel):
        store.get(parse_name("torn"))
    with pytest.raises(BadModel):
        store.collect_garbage(grace_s=-1)
    assert [problem.kind for problem in store.verify()] == ["manifest"]
    store.remove(parse_name("torn"))
    assert store.verify() == []
    assert store.blob(digest).exists()


def test_garbage_goes_after_its_grace(store: Store) -> None:
    kept = save(store, "kept")
    orphan, _ = store.add_bytes(b"orphan")
    (store.layout.blobs / ".tmp-1-dead").write_bytes(b"half")
    (store.layout.blobs / ("sha256-" + "1" * 64 + ".partial")).write_bytes(b"half")
    assert store.collect_garbage(grace_s=3600) == []
    assert sorted(problem.kind for problem in store.verify()) == []
    old = time.time() - 7200
    for path in store.layout.blobs.iterdir():
        os.utime(path, (old, old))
    assert sorted(problem.kind for problem in store.verify()) == ["orphan", "temporary"]
    assert len(store.collect_garbage()) == 3
    assert store.blob(kept).exists()
    assert not store.blob(orphan).exists()


def test_every_flipped_byte_is_found(store: Store) -> None:
    for index in range(10):
        digest = save(store, f"m{index}", bytes([index]) * 1000)
        data = bytearray(store.blob(digest).read_bytes())
        data[index * 99] ^= 1
        store.blob(digest).write_bytes(data)
    assert [problem.kind for problem in store.verify()] == ["digest"] * 10
    assert store.verify(deep=False) == []


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=90), st.from_regex(r"sha256[:-][0-9a-fA-F./]{60,66}", fullmatch=True)))
def test_no_digest_leads_out_of_the_blobs(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    store = Store(Path("/store"))
    try:
        path = store.blob(text)
    except Unsafe:
        return
    assert path.parent == Path("/store/blobs")
    assert check_digest(text) == path.name.replace("-", ":", 1)


PIECE = st.sampled_from(["..", ".", "", "a", "A", "latest", "C:", "\\", "~", "a\0", "%2e%2e", "é", "a" * 81])


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECE, min_size=1, max_size=5).map("/".join), st.one_of(PIECE, st.text(max_size=5)))
def test_no_name_leads_out_of_the_manifests(first: str, tag: str) -> None:
    store = Store(Path("/store"))
    try:
        path = store.layout.manifest(parse_name(f"{first}:{tag}"))
    except UsageError:
        return
    assert ".." not in path.parts
    assert path.relative_to("/store/manifests").parts.__len__() == 4
    assert str(path) == str(path).lower()


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "C:x", "a\\b", "a\0b", "x" * 256, "a/", "a\n"])
def test_file_names_that_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(Unsafe):
        check_file_name(name)


def test_a_hand_made_name_reference_is_checked_again(store: Store) -> None:
    with pytest.raises(UsageError):
        store.layout.manifest(NameRef("..", "..", "..", ".."))
