"""Tiny models for the tests of the store: files that are really what they say, with next to nothing in them."""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file


def write_gguf(path: Path, seed: int = 0, rows: int = 8) -> Path:
    """A GGUF file of the llama family with one tensor of (rows, 32) float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(rows)])
    weights = np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)
    writer.add_tensor("token_embd.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_checkpoint(folder: Path, seed: int = 0, model_type: str = "llama") -> Path:
    """A checkpoint folder with config, tokenizer and one small tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": model_type, "hidden_size": 8, "max_position_embeddings": 64, "vocab_size": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}}}))
    weights = np.random.default_rng(seed).standard_normal((4, 8)).astype(np.float32)
    save_file({"model.embed_tokens.weight": weights}, str(folder / "model.safetensors"))
    return folder


def write_wheel(folder: Path, package: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    """A wheel that pip accepts, with these files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = package.replace("-", "_")
    path = folder / f"{plain}-{version}-py3-none-any.whl"
    info = f"{plain}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path
