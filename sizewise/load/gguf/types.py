"""Facts about the GGUF format: how each kind of weight is packed, and the codes that files use for them.

Kept as tables of our own so that reading a header imports nothing; the tests compare them with the gguf package.
"""

from dataclasses import dataclass
from struct import Struct


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One way to pack weights: `block` weights of a row take `bytes` bytes."""

    name: str
    code: int
    block: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits per weight, the scales of the blocks included."""
        return 8 * self.bytes / self.block

    @property
    def quantized(self) -> bool:
        """True where several weights share a scale."""
        return self.block > 1

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights; `width` must be a multiple of `block`."""
        return width // self.block * self.bytes


_PACKED = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q8_1", 9, 32, 40),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
)
BY_CODE: dict[int, GgmlType] = {row[1]: GgmlType(*row) for row in _PACKED}
BY_NAME: dict[str, GgmlType] = {kind.name: kind for kind in BY_CODE.values()}

# general.file_type: the name of the mix that the whole file was made with.
FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}
FILE_TYPE_CODES: dict[str, int] = {name: code for code, name in FILE_TYPES.items()}

# Metadata values: code -> how to read one. Strings and arrays have no fixed size and are not in this table.
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: dict[int, Struct] = {
    0: Struct("<B"),
    1: Struct("<b"),
    2: Struct("<H"),
    3: Struct("<h"),
    4: Struct("<I"),
    5: Struct("<i"),
    6: Struct("<f"),
    BOOL: Struct("<?"),
    10: Struct("<Q"),
    11: Struct("<q"),
    12: Struct("<d"),
}

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
QUANTIZATION_VERSION = 2  # of the block formats above

# The architectures that come first; every other name is looked up in the gguf package, which takes 0.2 s to import.
COMMON_ARCHITECTURES = frozenset(
    {
        "llama",
        "llama4",
        "qwen2",
        "qwen2moe",
        "qwen3",
        "qwen3moe",
        "gemma",
        "gemma2",
        "gemma3",
        "phi2",
        "phi3",
        "phimoe",
        "falcon",
        "gpt2",
        "gptneox",
        "bert",
        "nomic-bert",
        "granite",
        "granitemoe",
        "mistral3",
        "deepseek2",
        "gpt-oss",
        "olmo2",
        "smollm3",
        "starcoder2",
        "command-r",
        "stablelm",
        "mamba",
    }
)


def known_architectures() -> frozenset[str]:
    """Every architecture name that the gguf package knows."""
    from gguf.constants import MODEL_ARCH_NAMES

    return frozenset(MODEL_ARCH_NAMES.values())
