"""Regular expressions as GBNF, for strings within JSON: what JSON must escape is escaped.

Understood is what schemas use: literals, classes, groups, alternatives, repetitions, anchors at the ends. Looking
around, referring back and flags are refused; a grammar cannot do them.
"""

from sizewise.core.errors import UsageError

MOST_DEPTH = 32  # groups within groups
MOST_REPEAT = 2000  # the engine's own limit
Ranges = list[tuple[int, int]]  # code points, both ends included

_ALL: Ranges = [(0x00, 0xD7FF), (0xE000, 0x10FFFF)]
_DIGIT: Ranges = [(48, 57)]
_WORD: Ranges = [(48, 57), (65, 90), (95, 95), (97, 122)]
_SPACE: Ranges = [(9, 13), (32, 32)]
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "b": 8}
_ESCAPED = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}  # as JSON writes them


def string_grammar(pattern: str, where: str) -> str:
    """The GBNF of a JSON string, quotes included, that matches a pattern. Without anchors, it may match anywhere.

    Raises:
        UsageError: the pattern holds what a grammar cannot do.
    """
    return '"\\"" ' + _Parser(pattern, where).whole() + ' "\\""'


def characters(ranges: Ranges) -> str:
    """One character of some, as JSON writes it."""
    plain, parts = [], []
    for low, high in _within(ranges):
        plain.append(_point(low) if low == high else f"{_point(low)}-{_point(high)}")
    parts += ["[" + "".join(plain) + "]"] if plain else []
    for point, letter in _ESCAPED.items():
        if any(low <= point <= high for low, high in ranges):
            parts.append(literal("\\" + letter))
    if not parts:
        return '"\\u0000"'  # matches nothing that a model writes
    return parts[0] if len(parts) == 1 else "(" + " | ".join(parts) + ")"


def literal(text: str) -> str:
    """A text as a GBNF literal."""
    marks = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(marks.get(char) or (char if char >= " " else f"\\x{ord(char):02X}") for char in text) + '"'


def complement(ranges: Ranges) -> Ranges:
    """All other code points."""
    found: Ranges = []
    for start, end in _ALL:
        at = start
        for low, high in sorted(ranges):
            if high < at or low > end:
                continue
            if low > at:
                found.append((at, low - 1))
            at = max(at, high + 1)
        if at <= end:
            found.append((at, end))
    return found


def _within(ranges: Ranges) -> Ranges:
    """Without what JSON must escape."""
    cut = complement([(0, 31), (34, 34), (92, 92)])
    return [(max(a, c), min(b, d)) for a, b in sorted(ranges) for c, d in cut if max(a, c) <= min(b, d)]


def _point(point: int) -> str:
    if 48 <= point <= 57 or 65 <= point <= 90 or 97 <= point <= 122:
        return chr(point)
    return f"\\x{point:02X}" if point < 256 else f"\\u{point:04X}" if point < 65536 else f"\\U{point:08X}"


class _Parser:
    """Reads a pattern from left to right and writes the grammar as it goes."""

    def __init__(self, pattern: str, where: str) -> None:
        self.pattern, self.where, self.at, self.depth = pattern, where, 0, 0

    def whole(self) -> str:
        """The whole pattern; open ends take any text."""
        pattern = self.pattern
        anything = characters(_ALL) + "*"
        start = "" if pattern.startswith("^") else anything + " "
        self.at = 0 if start else 1
        ends = pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2 == 1
        self.pattern = pattern[:-1] if ends else pattern
        body = self.alternatives()
        if self.at < len(self.pattern):
            raise self.wrong("an unexpected ')'")
        return f"{start}({body})" + ("" if ends else " " + anything)

    def alternatives(self) -> str:
        """One or more sequences."""
        parts = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            parts.append(self.sequence())
        return " | ".join(parts)

    def sequence(self) -> str:
        """Atoms with their repetitions, up to the end of the group."""
        parts: list[str] = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.atom()))
        return " ".join(parts) or '""'

    def repeated(self, atom: str) -> str:
        """An atom with the repetition that follows it, if one does."""
        char = self.peek()
        if char in ("*", "+", "?") and char:
            self.at += 1
            mark = char
        elif char == "{":
            end = self.pattern.find("}", self.at)
            low, comma, high = self.pattern[self.at + 1 : max(end, self.at)].partition(",")
            if end < 0 or not low.isdecimal() or not (high.isdecimal() or not high):
                raise self.wrong("a repetition that is none")
            if max(int(low), int(high or 0)) > MOST_REPEAT or (high and int(high) < int(low)):
                raise self.wrong(f"a repetition of more than {MOST_REPEAT}, or less than none")
            self.at = end + 1
            mark = "{" + low + comma + high + "}"
        else:
            return atom
        if self.peek() == "?":  # lazy: which of the matches is found does not matter here
            self.at += 1
        if self.peek() in ("*", "+", "{") and self.peek():
            raise self.wrong("a repetition of a repetition")
        return atom + mark

    def atom(self) -> str:
        """A character, a class or a group."""
        char = self.peek()
        self.at += 1
        if char == "(":
            return self.group()
        if char == "[":
            return characters(self.bracket())
        if char == ".":
            return characters(complement([(10, 10)]))
        if char == "\\":
            return characters(self.escape())
        if char in "*+?{^$":
            raise self.wrong(f"{char!r} with nothing before it" if char not in "^$" else f"{char!r} in the middle")
        return characters([(ord(char), ord(char))])

    def group(self) -> str:
        """What stands in parentheses."""
        if self.peek() == "?":
            if self.pattern[self.at : self.at + 2] != "?:":
                raise self.wrong("a group that looks around, has a name or sets flags")
            self.at += 2
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise self.wrong(f"more than {MOST_DEPTH} groups within groups")
        body = self.alternatives()
        if self.peek() != ")":
            raise self.wrong("a group without its end")
        self.at += 1
        self.depth -= 1
        return f"({body})"

    def bracket(self) -> Ranges:
        """What stands in brackets."""
        negated = self.peek() == "^"
        self.at += negated
        found: Ranges = []
        first = True
        while (char := self.peek()) != "]" or first:
            if not char:
                raise self.wrong("a class without its end")
            first = False
            self.at += 1
            ranges = self.escape() if char == "\\" else [(ord(char), ord(char))]
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                end = self.peek()
                self.at += 1
                last = self.escape() if end == "\\" else [(ord(end), ord(end))]
                if len(ranges) > 1 or len(last) > 1 or last[0][0] < ranges[0][0]:
                    raise self.wrong("a range that is none")
                ranges = [(ranges[0][0], last[0][1])]
            found += ranges
        self.at += 1
        return complement(found) if negated else found

    def escape(self) -> Ranges:
        """What follows a backslash."""
        char = self.peek()
        self.at += 1
        if char.lower() in _CLASSES and char:
            known = _CLASSES[char.lower()]
            return known if char.islower() else complement(known)
        if char in _CONTROLS:
            return [(_CONTROLS[char], _CONTROLS[char])]
        if char in ("x", "u"):
            digits = self.pattern[self.at : self.at + (2 if char == "x" else 4)]
            try:
                point = int(digits, 16)
            except ValueError:
                raise self.wrong("an escape that is none") from None
            self.at += len(digits)
            return [(point, point)]
        if not char or char.isalnum():
            raise self.wrong(f"the escape \\{char}, which a grammar cannot do")
        return [(ord(char), ord(char))]

    def peek(self) -> str:
        """The next character; "" at the end."""
        return self.pattern[self.at : self.at + 1]

    def wrong(self, what: str) -> UsageError:
        """The refusal."""
        return UsageError(f"{self.where}.pattern: {self.pattern!r:.60} has {what}")
