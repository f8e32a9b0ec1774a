"""A random BERT that scores pairs of texts: as a GGUF file, and as the torch model that it was written from."""

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import BertConfig, BertForSequenceClassification

WORDS = ["cats", "sleep", "on", "mats", "dogs", "bark", "at", "night", "the", "sun", "is", "warm", "today"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
_LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}


def make_reranker(seed: int = 0) -> Any:
    """Two layers of width 32, and a head with one output."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        type_vocab_size=2,
        num_labels=1,
        initializer_range=0.5,
        hidden_act="gelu_pytorch_tanh",  # as the engine computes it
    )
    return BertForSequenceClassification(config).eval()


def pair_score(model: Any, query: str, document: str) -> float:
    """What the torch model makes of a pair. The engine has one type of token, so both texts get the first."""
    words = ["[CLS]", *query.split(), "[SEP]", *document.split(), "[SEP]"]
    ids = torch.tensor([[VOCABULARY.index(word) for word in words]])
    with torch.no_grad():
        return float(model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits[0, 0])


def write_reranker(path: Path, model: Any) -> Path:
    """The model as GGUF, with the pooling of a reranker."""
    config, writer = model.config, gguf.GGUFWriter(path, "bert")
    writer.add_name("reranker")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_file_type(0)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([*VOCABULARY[:5], *("\u2581" + word for word in WORDS)])
    writer.add_token_types([3] * 5 + [1] * len(WORDS))
    writer.add_token_type_count(config.type_vocab_size)
    for name, token in (("bos", 2), ("eos", 3), ("sep", 3), ("pad", 0), ("unk", 1), ("mask", 4)):
        getattr(writer, f"add_{name}_token_id")(token)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    names = {
        "token_embd.weight": "bert.embeddings.word_embeddings.weight",
        "position_embd.weight": "bert.embeddings.position_embeddings.weight",
        "token_types.weight": "bert.embeddings.token_type_embeddings.weight",
    }
    both = {"token_embd_norm": "bert.embeddings.LayerNorm", "cls": "bert.pooler.dense", "cls.output": "classifier"}
    for layer in range(config.num_hidden_layers):
        both |= {f"blk.{layer}.{ours}": f"bert.encoder.layer.{layer}.{theirs}" for ours, theirs in _LAYER.items()}
    names |= {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in both.items() for part in ("weight", "bias")}
    for ours, theirs in names.items():
        writer.add_tensor(ours, state[theirs])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
