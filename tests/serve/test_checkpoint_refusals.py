"""Checkpoints over HTTP that are not taken (rows 66 to 68), and patterns that explode (row 48)."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import ollama
import pytest
from served import Served
from tiny_checkpoint import write_causal

from sizewise.load.store.store import Store

Change = Callable[[Path], None]
WEIGHTS = "model.safetensors"


def header_of(folder: Path) -> tuple[dict[str, dict[str, list[int]]], bytes]:
    data = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(folder: Path, header: bytes, body: bytes) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + body)


def endless(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 63) + (folder / WEIGHTS).read_bytes()[8:])


def overlapping(folder: Path) -> None:
    header, body = header_of(folder)
    one, two = [name for name in header if name != "__metadata__"][:2]
    header[two]["data_offsets"] = header[one]["data_offsets"]
    with_header(folder, json.dumps(header).encode(), body)


def with_a_hole(folder: Path) -> None:
    header, body = header_of(folder)
    with_header(folder, json.dumps(header).encode(), body + b"\0" * 64)


def of_no_text(folder: Path) -> None:
    header, body = header_of(folder)
    with_header(folder, json.dumps(header).encode().replace(b"model.", b"mo\xffel.", 1), body)


def only_pickles(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config))


CASES: list[tuple[Change, str]] = [
    (endless, WEIGHTS),
    (overlapping, WEIGHTS),
    (with_a_hole, WEIGHTS),
    (of_no_text, WEIGHTS),
    (only_pickles, "safetensors"),
    (with_code, "auto_map"),
]


@pytest.mark.parametrize(("change", "part"), CASES)
def test_a_checkpoint_that_is_not_taken(store_served: Served, tmp_path: Path, change: Change, part: str) -> None:
    folder = write_causal(tmp_path, "llama")
    change(folder)
    client = ollama.Client(store_served.url, timeout=120)
    files = {path.name: client.create_blob(path) for path in sorted(folder.iterdir()) if path.is_file()}
    with pytest.raises(ollama.ResponseError, match=part) as caught:
        client.create("bad", files=files)
    assert caught.value.status_code == 422
    assert "\n" not in caught.value.error
    assert "Traceback" not in caught.value.error
    assert all(str(kept.name.model) != "bad" for kept in Store(store_served.home / "models").list())
    assert client.generate("base", "hello", options={"num_predict": 2}).done  # the next good request


@pytest.mark.parametrize("where", ["stop", "pattern"])
def test_row_48_a_pattern_that_explodes_costs_nothing(store_served: Served, where: str) -> None:
    bomb = "(a+)+$"
    body = {"model": "base", "prompt": "a" * 40 + "b", "stream": False, "options": {"num_predict": 4}}
    if where == "stop":
        body["options"] = {"num_predict": 4, "stop": [bomb]}  # a text, and never a pattern
    else:
        body["format"] = {"type": "string", "pattern": f"^{bomb}"}
    with store_served.client() as client:
        client.post("/api/generate", json={"model": "base", "stream": False})
        began = time.monotonic()
        answer = client.post("/api/generate", json=body)
        took_s = time.monotonic() - began
    assert answer.status_code in ((200,) if where == "stop" else (200, 400)), answer.text
    assert took_s < 20  # one second is asked for on an idle machine
