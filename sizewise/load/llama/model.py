"""A GGUF model and its context in the engine's memory, with numpy at the edges."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import BadModel, EngineFailed, UsageError
from sizewise.load.llama.c import WANTED, Batch, library
from sizewise.load.llama.long_texts import CONTROL, PART, UNKNOWN, LongTexts


class NativeModel:
    """A loaded model, or only its vocabulary and metadata."""

    def __init__(self, path: Path, *, vocab_only: bool = False, adapters: Sequence[str] = ()) -> None:
        """Load a file; `adapters` are LoRA files that every context adds to its weights.

        Raises:
            BadModel: the engine cannot load one of them.
        """
        self.lib = library()
        params = self.lib.llama_model_default_params()
        params.vocab_only = vocab_only
        self.handle = self.lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise BadModel(f"{path}: the engine cannot load this file")
        self.adapters = [self.lib.llama_adapter_lora_init(self.handle, os.fsencode(one)) for one in adapters]
        if not all(self.adapters):
            raise BadModel(f"{path}: the engine cannot load its adapter")
        self.vocab = self.lib.llama_model_get_vocab(self.handle)
        self.n_vocab: int = self.lib.llama_vocab_n_tokens(self.vocab)
        self.bos: int = self.lib.llama_vocab_bos(self.vocab)
        self.eos: int = self.lib.llama_vocab_eos(self.vocab)
        self.long_texts = LongTexts(self)
        self.adds_bos: bool = self.bos >= 0 and self.lib.llama_vocab_get_add_bos(self.vocab)

    @property
    def start(self) -> int:
        """The token that stands before a text without a prompt: BOS, or EOS where there is no BOS."""
        return self.bos if self.bos >= 0 else max(self.eos, 0)

    def close(self) -> None:
        """Free the weights."""
        if self.handle:
            self.lib.llama_model_free(self.handle)
            self.handle = None

    def meta(self, key: str) -> str | None:
        """A metadata value as text; `{arch}` in the key stands for the architecture's name."""
        if "{arch}" in key:
            key = key.replace("{arch}", self.meta("general.architecture") or "")
        buffer = ctypes.create_string_buffer(1024)
        length = self.lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        if length >= len(buffer):
            buffer = ctypes.create_string_buffer(length + 1)
            length = self.lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def tokenize(self, text: str, *, special: bool, wrap: bool = False) -> list[int]:
        """Token ids of a text. `special`: control tokens are read as such; `wrap`: BOS, EOS, CLS, SEP are added."""
        if len(text) > PART and not wrap:
            return self.long_texts.tokenize(text, special=special)
        return self.tokenize_whole(text, special=special, wrap=wrap)

    def tokenize_whole(self, text: str, *, special: bool, wrap: bool = False) -> list[int]:
        """The same by the engine alone, whatever time it takes."""
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 16
        while True:
            out = np.empty(room, np.int32)
            count = self.lib.llama_tokenize(self.vocab, data, len(data), out.ctypes.data, room, wrap, special)
            if count >= 0:
                tokens: list[int] = out[:count].tolist()
                return tokens
            room = -count

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of token ids, control tokens spelled out; half a character at an end stays half.

        Raises:
            UsageError: an id is outside the vocabulary.
        """
        wrong = next((token for token in tokens if not 0 <= token < self.n_vocab), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is no token: the vocabulary has {self.n_vocab}, from 0")
        ids, room = np.array(tokens, np.int32), 16 * len(tokens) + 64
        while True:
            out = ctypes.create_string_buffer(room)
            size = self.lib.llama_detokenize(self.vocab, ids.ctypes.data, len(ids), out, room, False, True)
            if size >= 0:
                return out.raw[:size]
            room = -size

    def gap_tokens(self) -> list[int]:
        """The tokens that stand before the text ahead of a gap, the text behind it, and the filling; -1: none."""
        return [getattr(self.lib, f"llama_vocab_fim_{part}")(self.vocab) for part in ("pre", "suf", "mid")]

    def control_texts(self) -> list[str]:
        """The texts of all tokens that only templates may write, such as `<|im_end|>` and `<unk>`."""
        found = []
        for token in range(self.n_vocab):
            if self.lib.llama_vocab_get_attr(self.vocab, token) & (UNKNOWN | CONTROL):
                text: bytes = self.lib.llama_vocab_get_text(self.vocab, token)
                found.append(text.decode("utf-8", "replace"))
        return [text for text in found if text]

    def token_text(self, token: int) -> str:
        """The text of a token as the vocabulary spells it; empty where there is no such token."""
        if token < 0:
            return ""
        text: bytes = self.lib.llama_vocab_get_text(self.vocab, token)
        return text.decode("utf-8", "replace")


class NativeContext:
    """Memory for the keys and values of several sequences, and the decoding itself."""

    def __init__(self, model: NativeModel, **settings: int) -> None:
        """Make a context; `settings` are fields of `ContextParams`.

        Raises:
            EngineFailed: there is no memory for it, or what the library reports is not what was set.
        """
        self.model, self.lib = model, model.lib
        params = self.lib.llama_context_default_params()
        for name, value in settings.items():
            setattr(params, name, value)
        self.handle = self.lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise EngineFailed(f"the engine cannot make a context of {settings.get('n_ctx')} tokens")
        self._check(settings)
        self._adapt(len(model.adapters))
        self.n_ctx: int = self.lib.llama_n_ctx(self.handle)
        self.n_batch: int = self.lib.llama_n_batch(self.handle)
        self.memory = self.lib.llama_get_memory(self.handle)

    def _check(self, settings: dict[str, int]) -> None:
        # The library rounds n_ctx up and lowers n_batch to n_ctx or n_ubatch to n_batch; it never lowers n_seq_max.
        report = {name: getattr(self.lib, f"llama_{name}")(self.handle) for name in ("n_ctx", "n_seq_max", "n_threads")}
        wrong = [name for name in report if name in settings and report[name] < settings[name]]
        if settings.get("kv_unified") and self.lib.llama_n_ctx_seq(self.handle) != report["n_ctx"]:
            wrong.append("kv_unified")
        if wrong:
            self.close()
            raise EngineFailed(f"the engine did not take {wrong[0]}: its layout is not that of xllamacpp {WANTED}")

    def _adapt(self, count: int) -> None:
        if count:
            handles, scales = (ctypes.c_void_p * count)(*self.model.adapters), (ctypes.c_float * count)(*[1.0] * count)
            if self.lib.llama_set_adapters_lora(self.handle, handles, count, scales):
                self.close()
                raise EngineFailed("the engine does not take the model's adapter")

    def close(self) -> None:
        """Free the memory."""
        if self.handle:
            self.lib.llama_free(self.handle)
            self.handle = None

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[Sequence[int]],
        wanted: Sequence[bool],
    ) -> None:
        """Run tokens through the model. Each belongs to one or more sequences; logits are kept where `wanted`.

        Raises:
            EngineFailed: the memory is full or the engine refuses the batch.
        """
        count = len(tokens)
        ids = np.array(tokens, np.int32)
        at = np.array(positions, np.int32)
        widths = np.array([len(group) for group in sequences], np.int32)
        flat = np.array([sequence for group in sequences for sequence in group], np.int32)
        starts = np.concatenate(([0], np.cumsum(widths[:-1]))).astype(np.uint64) * np.uint64(4)
        pointers = starts + np.uint64(flat.ctypes.data)
        flags = np.array(wanted, np.int8)
        arrays = [array.ctypes.data for array in (at, widths, pointers, flags)]
        code = self.lib.llama_decode(self.handle, Batch(count, ids.ctypes.data, None, *arrays))
        if code:
            reason = "its memory is full" if code == 1 else f"code {code}"
            raise EngineFailed(f"the engine could not decode {count} tokens ({reason})")

    def copy(self, source: int, target: int) -> None:
        """Let sequence `target` begin with all tokens of `source`; nothing is computed or moved."""
        self.lib.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def forget(self, sequence: int, first: int = -1) -> None:
        """Drop a sequence's tokens from position `first` on; without it, all of them."""
        self.lib.llama_memory_seq_rm(self.memory, sequence, first, -1)

    def clear(self) -> None:
        """Drop everything, also the states of recurrent layers."""
        self.lib.llama_memory_clear(self.memory, True)

    def logits(self, rows: int) -> NDArray[np.float32]:
        """(rows, vocabulary) logits of the last `decode`, in the order of its wanted tokens. Copied."""
        pointer = self.lib.llama_get_logits(self.handle)
        return np.array(np.ctypeslib.as_array(pointer, (rows, self.model.n_vocab)))

    def sequence_embedding(self, sequence: int, width: int) -> NDArray[np.float32]:
        """(width,) pooled embedding of a sequence after `decode`. Copied."""
        pointer = self.lib.llama_get_embeddings_seq(self.handle, sequence)
        if not pointer:
            raise EngineFailed("the engine gave no embedding; is this an embedding model?")
        return np.array(np.ctypeslib.as_array(pointer, (width,)))
