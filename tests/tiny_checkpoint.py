"""Tiny random checkpoints of real families, written to disk by the families' own classes in milliseconds."""

import json
from pathlib import Path
from typing import Any

from sizewise.core.model import Model
from sizewise.load.checkpoint.folder import inspect_checkpoint

TEXT = "the quick brown fox jumps over a lazy dog. yes no positive negative question answer 0 1 2 3 4 5 6 7 8 9 é 東京 "
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
_SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 24},
    "gemma2": {"head_dim": 8, "sliding_window": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "phi3": {"pad_token_id": 0, "original_max_position_embeddings": 512},
    "falcon": {"alibi": True},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.5},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
FAMILIES = ("llama", "qwen2", "mistral", "gemma2", "phi", "phi3", "falcon", "gpt2", "granite", "opt")


def write_tokenizer(folder: Path, *, bos: bool = True) -> int:
    """A byte-level BPE tokenizer of 400 tokens, which can spell any text. Answers the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator([TEXT] * 4, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    ready = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    ready.chat_template = TEMPLATE
    ready.save_pretrained(folder)
    return raw.get_vocab_size()


def write_causal(folder: Path, family: str, *, seed: int = 0, bos: bool = True) -> Path:
    """A causal language model whose weights are large enough that its answers differ from prompt to prompt."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = write_tokenizer(folder, bos=bos)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size = {} if family == "gpt2" else _SIZE
    config = AutoConfig.for_model(family, vocab_size=vocabulary, **{**ids, **size, **_OWN.get(family, {})})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=1.0 if "embed" in name or "wte" in name else 0.25)
    model.save_pretrained(folder)
    return folder


def write_encoder(folder: Path, *, pooling: str = "mean_tokens", longest: int = 16) -> Path:
    """A BERT with the files that sentence-transformers writes beside it."""
    import torch
    from transformers import BertConfig, BertModel

    vocabulary = write_tokenizer(folder)
    torch.manual_seed(0)
    size = {name: value for name, value in _SIZE.items() if name != "num_key_value_heads"}
    BertModel(BertConfig(vocab_size=vocabulary, **size)).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listing = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    return folder


def as_model(folder: Path, **changes: Any) -> Model:
    """The folder as the value that runners take."""
    info = inspect_checkpoint(folder)
    values: dict[str, Any] = {
        "name": folder.name,
        "kind": "encoder" if info.is_encoder else "checkpoint",
        "digest": "sha256:" + "0" * 64,
        "files": info.files,
        "size_bytes": info.size_bytes,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "context_length": info.context_length,
        "template": info.template,
    }
    return Model(**{**values, **changes})
