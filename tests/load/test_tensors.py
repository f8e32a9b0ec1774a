"""Tensors read one by one and written shard by shard, against the safetensors library."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import write_family
from safetensors.torch import load_file

from sizewise.core.errors import BadModel, UsageError
from sizewise.load.checkpoint.folder import INDEX, WEIGHTS
from sizewise.load.checkpoint.tensors import TensorSink, TensorSource, save_tensors

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)


def _dress(folder: Path) -> Path:
    """The files that make a folder with weights a checkpoint."""
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_reads_what_the_library_reads(tmp_path: Path) -> None:
    folder = write_family("gpt2", tmp_path)
    source, expected = TensorSource(folder), load_file(folder / WEIGHTS)
    assert set(source) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(source.get(name), tensor)
        assert torch.equal(source.rows(name, 3, 7), tensor[3:7])


@pytest.mark.parametrize("shard_bytes", [1, 200, 1 << 20])
def test_writes_what_the_library_reads(tmp_path: Path, shard_bytes: int) -> None:
    tensors = {f"t{place}": torch.randint(0, 2, (3, place + 1)).to(kind) for place, kind in enumerate(TYPES)}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    with TensorSink(tmp_path, shard_bytes=shard_bytes) as sink:
        for name, tensor in tensors.items():
            sink.put(name, tensor)
        files = sink.finish()
    assert (files == [tmp_path / WEIGHTS]) == (shard_bytes == 1 << 20)
    loaded = {name: value for path in tmp_path.glob("*.safetensors") for name, value in load_file(path).items()}
    source = TensorSource(_dress(tmp_path))
    for name, tensor in tensors.items():
        for found in (loaded[name], source.get(name)):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


def test_blocks_of_a_small_model_become_one_file(tmp_path: Path) -> None:
    tensors = {f"t{place}": torch.randn(5, 3).to(TYPES[place % 3]) for place in range(6)}
    sink = TensorSink(tmp_path)
    for name, tensor in tensors.items():
        sink.put(name, tensor)
        sink.flush()
    assert sink.finish() == [tmp_path / WEIGHTS]
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS]
    loaded = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from sizewise.load.checkpoint.tensors import TensorSink\n"
        "sink = TensorSink(sys.argv[1])\n"
        "for place in range(4):\n"
        "    sink.put(f't{place}', torch.full((8,), float(place))); sink.flush()\n"
    )
    environment = os.environ | {"SIZEWISE_FAULT": "rename:3:kill"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / WEIGHTS).exists()
    assert not (tmp_path / INDEX).exists()
    sink = TensorSink(tmp_path, resume=True)
    assert sink.done == {"t0", "t1"}
    for place in (2, 3):
        sink.put(f"t{place}", torch.full((8,), float(place)))
    sink.finish()
    loaded = load_file(tmp_path / WEIGHTS)
    assert {name: tensor[0].item() for name, tensor in loaded.items()} == {f"t{place}": place for place in range(4)}


def test_starting_anew_forgets_old_parts(tmp_path: Path) -> None:
    first = TensorSink(tmp_path)
    first.put("old", torch.zeros(2))
    first.flush()
    save_tensors(tmp_path, [("new", torch.ones(2))])
    assert set(load_file(tmp_path / WEIGHTS)) == {"new"}


def test_misuse_is_refused(tmp_path: Path) -> None:
    sink = TensorSink(tmp_path)
    sink.put("a", torch.zeros(2))
    with pytest.raises(UsageError, match="twice"):
        sink.put("a", torch.zeros(2))
    sink.finish()
    source = TensorSource(_dress(tmp_path))
    with pytest.raises(BadModel, match="no tensor b"):
        source.get("b")
    with pytest.raises(UsageError, match="2 rows"):
        source.rows("a", 1, 3)
    with pytest.raises(UsageError, match="without tensors"):
        TensorSink(tmp_path / "empty").finish()
