"""A checkpoint is described from its headers; a damaged or dangerous one is refused with the file's name."""

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sizewise.core.errors import BadModel, Unsafe
from sizewise.load.checkpoint.folder import inspect_checkpoint, read_safetensors_header

CONFIG = {"model_type": "llama", "hidden_size": 8, "max_position_embeddings": 64}


def make(folder: Path, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    tensors: dict[str, Any] = {
        "a": np.zeros((4, 8), np.float32),
        "b": np.zeros(8, np.float16),
        "position_ids": np.zeros(9, np.int64),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def shard(folder: Path, weight_map: dict[str, str]) -> None:
    save_file({"a": np.zeros(4, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.zeros(4, np.float32)}, folder / "two.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_describes_a_checkpoint(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "README.md").write_text("not part of the model")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle beside the weights is left alone")
    info = inspect_checkpoint(folder)
    assert (info.architecture, info.parameters, info.dtype) == ("llama", 40, "F32")
    assert (info.context_length, info.embedding_length, info.template) == (64, 8, "{{ messages }}")
    assert sorted(info.files) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert info.size_bytes == sum(path.stat().st_size for path in info.files.values())
    assert not info.is_encoder


def test_a_template_file_wins_and_a_named_template_is_found(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert inspect_checkpoint(folder).template == "d"
    (folder / "chat_template.jinja").write_text("own file")
    assert inspect_checkpoint(folder).template == "own file"


def test_reads_shards(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    shard(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    info = inspect_checkpoint(folder)
    assert info.parameters == 8
    assert {"one.safetensors", "two.safetensors", "model.safetensors.index.json"} <= set(info.files)


@pytest.mark.parametrize(
    ("weight_map", "error", "words"),
    [
        ({"a": "pytorch_model.bin"}, Unsafe, "pytorch_model.bin"),
        ({"a": "../one.safetensors"}, Unsafe, "no file of this folder"),
        ({"a": "/etc/one.safetensors"}, Unsafe, "no file of this folder"),
        ({"a": "three.safetensors"}, BadModel, "three.safetensors, which is missing"),
        ({"a": "two.safetensors"}, BadModel, "tensor 'a' is missing"),
        ({}, BadModel, "weight_map"),
        ({"a": 1}, BadModel, "weight_map"),
    ],
)
def test_refuses_a_wrong_index(tmp_path: Path, weight_map: Any, error: type[Exception], words: str) -> None:
    folder = make(tmp_path / "m")
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "one.safetensors")
    shard(folder, weight_map)
    with pytest.raises(error, match=words.replace("(", r"\(")):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "tf_model.h5", "flax_model.msgpack"])
def test_refuses_a_folder_with_only_pickles(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(Unsafe, match=f"only pickled weights .*{name}.*convert"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_names_the_missing_file(tmp_path: Path, missing: str) -> None:
    folder = make(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(BadModel, match=f"{missing} is missing"):
        inspect_checkpoint(folder)


def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="no such folder"):
        inspect_checkpoint(tmp_path / "nothing")


def test_refuses_an_adapter_without_its_base(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadModel, match="adapter"):
        inspect_checkpoint(folder)


def test_refuses_remote_code_except_where_the_family_is_built_in(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    with pytest.raises(Unsafe, match="auto_map"):
        inspect_checkpoint(make(tmp_path / "m", CONFIG | code))
    phi = make(tmp_path / "phi", CONFIG | code | {"model_type": "phi3"})
    (phi / "modeling_x.py").write_text("raise SystemExit")
    assert "modeling_x.py" not in inspect_checkpoint(phi).files
    other = make(tmp_path / "tokenizer")
    (other / "tokenizer_config.json").write_text(json.dumps(code))
    with pytest.raises(Unsafe, match="tokenizer_config"):
        inspect_checkpoint(other)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\udcff"])
def test_refuses_a_config_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    folder = make(tmp_path / "m")
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BadModel, match=r"config\.json"):
        inspect_checkpoint(folder)


def header(entries: dict[str, Any] | bytes, data: int) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "cut short"),
        (b"\x08\x00", "cut short"),
        (b"", "cut short"),
        (header({"a": entry(0, 4), "b": entry(2, 6)}, 6), "overlaps"),
        (header({"a": entry(0, 4), "b": entry(8, 12)}, 12), "hole"),
        (header({"a": entry(4, 8)}, 8), "hole"),
        (header({"a": entry(0, 400, shape=(100,))}, 8), "cut short"),
        (header({"a": entry(0, 4)}, 8), "followed by"),
        (header(b'{"\xff": 1}', 0), "JSON"),
        (header(b"[1]", 0), "JSON object"),
        (header({"a": entry(0, 4, dtype="OBJ")}, 4), "unknown dtype"),
        (header({"a": entry(0, 4, shape=(7,))}, 4), "needs 28 bytes"),
        (header({"a": entry(0, 4, shape=(-1,))}, 4), "no valid shape"),
        (header({"a": entry(4, 0)}, 4), "needs 4 bytes"),
        (header({"a": 3}, 4), "no valid shape"),
        (header({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4), "no valid shape"),
        (header(b'{"a":1,"a":2}', 0), "twice"),
    ],
)
def test_refuses_a_damaged_header(tmp_path: Path, content: bytes, words: str) -> None:
    folder = make(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BadModel, match=words):
        inspect_checkpoint(folder)


def test_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32), "empty": np.zeros((0, 4), np.int8)}, path, {"format": "pt"})
    tensors = read_safetensors_header(path)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == {
        "a": ("F32", (2, 3)),
        "empty": ("I8", (0, 4)),
    }


def test_a_link_may_not_leave_the_folder_but_a_hub_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    outside = tmp_path / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(Unsafe, match="leaves the folder"):
        inspect_checkpoint(folder)
    snapshot = make(tmp_path / "cache" / "models--x--y" / "snapshots" / "rev")
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(os.path.join("..", "..", "blobs", name))
    assert inspect_checkpoint(snapshot).parameters == 40


def modules(folder: Path, path: str = "1_Pooling") -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": path}]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))


def test_knows_an_encoder(tmp_path: Path) -> None:
    assert inspect_checkpoint(make(tmp_path / "bert", CONFIG | {"model_type": "bert"})).is_encoder
    folder = make(tmp_path / "m")
    modules(folder)
    info = inspect_checkpoint(folder)
    assert info.is_encoder
    assert info.context_length == 32
    assert "1_Pooling/config.json" in info.files


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", ".."])
def test_a_module_may_not_leave_the_folder(tmp_path: Path, path: str) -> None:
    folder = make(tmp_path / "m")
    modules(folder, path)
    with pytest.raises(Unsafe, match=r"modules\.json"):
        inspect_checkpoint(folder)


@pytest.mark.model
def test_describes_minilm(minilm: Path) -> None:
    info = inspect_checkpoint(minilm)
    assert (info.architecture, info.dtype, info.is_encoder) == ("bert", "F32", True)
    assert (info.context_length, info.embedding_length, info.parameters) == (256, 384, 22_713_216)


def test_needs_no_torch(tmp_path: Path, fresh_python: Callable[[str], str]) -> None:
    code = f"from sizewise.load.checkpoint.folder import inspect_checkpoint as i; i({str(make(tmp_path / 'm'))!r})"
    assert "torch" not in fresh_python(code).split()


@pytest.fixture
def fresh_python() -> Callable[[str], str]:
    """Run code in a new interpreter; answers the names of the modules that it imported."""
    import subprocess

    def run(code: str) -> str:
        code += "; import sys; print(*sys.modules)"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    return run
