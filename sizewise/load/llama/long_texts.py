"""Long texts and the engine's tokenizer: what is too long is known without it, and what is slow in it is cut up.

The engine's SentencePiece tokenizer takes time that grows with the square of the number of characters which its
vocabulary spells as bytes: it makes room for them one by one. A megabyte of line feeds takes it minutes. Tokens grow by
merging neighbours, so a text may be cut between two characters that no token holds side by side, and its parts have the
tokens that the whole has.
"""

import itertools
import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sizewise.load.llama.model import NativeModel

_SENTENCE_PIECE, _BYTE_PAIRS = 1, 2  # kinds of vocabularies
UNKNOWN, CONTROL, _USER_DEFINED, _BYTE, _STRIPS = 1, 1 << 3, 1 << 4, 1 << 5, 1 << 7 | 1 << 8  # attributes of tokens
_CUT_OUT = UNKNOWN | CONTROL | _USER_DEFINED
_BLANKS = b" \t\n\v\f\r"
PART = 4096  # characters: what is shorter is not worth a cut


class LongTexts:
    """What the vocabulary of one model makes of long texts. Nothing is read before it is needed."""

    def __init__(self, model: "NativeModel") -> None:
        self._model = model
        self._apart: dict[str, bool] = {}  # of two neighbours: whether a text may be cut between them
        self._kind: int = model.lib.llama_vocab_type(model.vocab)

    def at_least(self, text: str) -> int:
        """A number of tokens that no tokenization of the text can be below: its bytes by those of the longest token.

        Only tokens made of bytes that the text has are looked at, so that the bound is near for text of few letters.
        """
        if self._kind not in (_SENTENCE_PIECE, _BYTE_PAIRS):
            return 0
        text = text.replace("▁", " ") if self._kind == _SENTENCE_PIECE else text  # one and the same there
        data = text.encode("utf-8", "surrogatepass")
        letters = set(data) | set(b" ")  # SentencePiece may put one before the text
        longest = next((len(token) for token in self._spelled if letters.issuperset(token)), 1)
        passed_over = bytes(set(range(256)) - self._bytes) + (_BLANKS if self._strips else b"")
        return -(-len(data.translate(None, passed_over)) // longest)

    def tokenize(self, text: str, *, special: bool, part: int = PART) -> list[int]:
        """The tokens of a text; `special`: control tokens are read as such."""
        first, *others = self._parts(text, part) if self._kind == _SENTENCE_PIECE else [text]
        tokens = self._model.tokenize_whole(first, special=special)
        for one in others:
            row = self._model.tokenize_whole(one, special=special)
            tokens += row[self._before :]
        return tokens

    def _parts(self, text: str, part: int) -> Iterator[str]:
        """The text, cut where no token can lie across; each part but the last has `part` characters or more."""
        places, last = [0], 0
        for start, end in self._open(text):
            while (place := self._place(text, max(start, last + part), end)) is not None:
                places.append(place)
                last = place
        return (text[a:b] for a, b in itertools.pairwise([*places, len(text)]))

    def _open(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the text may be cut: not within, before or behind a token that the engine looks for before all others.

        There it adds a space, or adds none, or drops blanks.
        """
        start = 1
        for found in self._cut_out.finditer(text) if self._cut_out else ():
            yield start, found.start()
            start = found.end() + 1
        yield start, len(text)

    def _place(self, text: str, start: int, end: int) -> int | None:
        """The first place from `start` on and before `end` at which a cut changes no token."""
        apart = self._apart
        for place in range(start, end):
            letters = text[place - 1 : place + 1]
            if letters not in apart:
                one, two = list(letters.replace("▁", " "))
                apart[letters] = one + two not in self._written and " " + two not in self._written
            if apart[letters]:
                return place
        return None

    @cached_property
    def _before(self) -> int:
        """How many tokens the engine puts before a text of its own accord: one where it adds a space."""
        one, two = (len(self._model.tokenize_whole("\ufdd1" * times, special=False)) for times in (1, 2))
        return 2 * one - two

    @cached_property
    def _tokens(self) -> list[tuple[str, int]]:
        """Text as the vocabulary writes it, and attributes, of each token."""
        lib, vocab = self._model.lib, self._model.vocab
        return [
            (lib.llama_vocab_get_text(vocab, token).decode("utf-8", "replace"), lib.llama_vocab_get_attr(vocab, token))
            for token in range(self._model.n_vocab)
        ]

    @cached_property
    def _spelled(self) -> list[bytes]:
        """The bytes of each token that text can become, longest first."""
        pairs = {chr(letter): bytes([byte]) for byte, letter in _letters_of_bytes().items()}
        found = []
        for text, attributes in self._tokens:
            if attributes & _BYTE:
                found.append(bytes([int(text[3:5], 16)]))
            elif self._kind == _BYTE_PAIRS and not attributes & _CUT_OUT:
                found.append(b"".join(pairs.get(letter, letter.encode()) for letter in text))
            else:
                found.append(text.replace("▁", " ").encode())
        return sorted(found, key=len, reverse=True)

    @cached_property
    def _bytes(self) -> set[int]:
        return set().union(*self._spelled)

    @cached_property
    def _strips(self) -> bool:
        """Whether some tokens swallow the blanks beside them."""
        return any(attributes & _STRIPS for _, attributes in self._tokens)

    @cached_property
    def _written(self) -> str:
        """All that tokens consist of, in a row."""
        return "\0".join(text.replace("▁", " ") for text, attributes in self._tokens if not attributes & _BYTE)

    @cached_property
    def _cut_out(self) -> re.Pattern[str] | None:
        """Tokens that the engine looks for before it tokenizes what is between them, with blanks around them."""
        found = [text for text, attributes in self._tokens if attributes & _CUT_OUT and text]
        texts = "|".join(re.escape(text) for text in sorted(found, key=len, reverse=True))
        return re.compile(rf"\s*(?:{texts})\s*" if self._strips else f"(?:{texts})") if found else None


def _letters_of_bytes() -> dict[int, int]:
    """How byte-level vocabularies write each byte: printable Latin-1 as itself, the others from 256 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: byte for byte in plain} | {byte: 256 + place for place, byte in enumerate(others)}
