"""`/v1/systemone`: typed decisions. A choice, a place on a scale or a yes/no, each with the probabilities behind it.

A language model is asked in words, and each option's probability is that of the answer beginning with the option's
text: the sum of the log-probabilities of its tokens, without a correction for length, made to add up to 1 over the
options. Where one option's text begins with another's ("no", "no idea"), the longer one's share is taken out of the
shorter one's. A classifier answers with the probabilities of its own labels, if the options are labels of it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sizewise.core.errors import UsageError
from sizewise.serve.body import BadField, Fields
from sizewise.serve.lease import KeepAlive
from sizewise.serve.wire import openai

MOST_QUESTIONS, MOST_CHOICES, MOST_LEVELS = 64, 255, 26
BY_WORDS = "sum of the log-probabilities of an option's tokens, not corrected for length, normalised over the options"
BY_LABELS = "the classifier's own class probabilities, normalised over the options"
_YES_NO = {"true": ("true", "yes", "1"), "false": ("false", "no", "0")}

Kind = Literal["choice", "noul", "score"]


@dataclass(frozen=True)
class Question:
    """One question; `options` are their keys with what is said of them, in order."""

    kind: Kind
    instructions: str
    options: dict[str, str]

    @property
    def words(self) -> list[str]:
        """What a language model would answer for each option."""
        return ["No", "Yes"] if self.kind == "noul" else list(self.options)

    def prompt(self, state: str) -> str:
        """The question in words."""
        if self.kind == "noul":
            told = [f"{word}: {text}" for word, text in zip(self.words, self.options.values(), strict=True) if text]
            rest = [*told, "Answer with Yes or No and nothing else."]
        else:
            rest = [f"{key}: {text}" if text else key for key, text in self.options.items()]
            what = "number" if self.kind == "score" else "option"
            rest.append(f"Answer with the {what} that fits best and nothing else.")
        return f"{state}\n\n{self.instructions}\n" + "\n".join(rest)

    def labels(self, key: str) -> Iterable[str]:
        """Names under which a classifier may know an option."""
        plain = _YES_NO[key] if self.kind == "noul" else (key,)
        return dict.fromkeys((*plain, *(word.capitalize() for word in plain), *filter(None, [self.options[key]])))

    def all_labels(self) -> list[str]:
        """Names under which a classifier may know any of the options."""
        return [name for option in self.options for name in self.labels(option)]


@dataclass(frozen=True)
class AskedDecision:
    """A request for decisions, checked."""

    model: str
    state: str
    questions: dict[str, Question]
    keep_alive: KeepAlive


def parse(fields: Fields) -> AskedDecision:
    """Read a request.

    Raises:
        BadField: a field is unknown, missing, or holds what it cannot.
    """
    model = fields.text("model", "", most=400)
    if not model:
        raise BadField("model", "is required")
    state = _content(fields.raw("state"), "state")
    sent = fields.mapping("questions")
    if not 1 <= len(sent) <= MOST_QUESTIONS:
        raise BadField("questions", f"holds {len(sent)} questions; 1 to {MOST_QUESTIONS} are possible")
    questions = {key: _question(key, value) for key, value in sent.items()}
    keep_alive = openai.keep_alive(fields)
    fields.finish()
    return AskedDecision(model, state, questions, keep_alive)


def _question(key: str, sent: Any) -> Question:
    where = f"questions.{key:.60}"
    if not key.strip():
        raise BadField("questions", "a question's name is blank")
    if not isinstance(sent, dict):
        raise BadField(where, "must be an object")
    fields = Fields(sent, where)
    kind: Kind = fields.choice("type", ("choice", "noul", "score"))
    instructions = _content(fields.raw("instructions"), f"{where}.instructions")
    options = {"choice": _choices, "noul": _yes_no, "score": _levels}[kind](fields)
    fields.finish()
    return Question(kind, instructions, options)


def _choices(fields: Fields) -> dict[str, str]:
    sent = fields.mapping("criteria")
    if not 2 <= len(sent) <= MOST_CHOICES:
        raise BadField(fields.name("criteria"), f"holds {len(sent)} choices; 2 to {MOST_CHOICES} are possible")
    for key, text in sent.items():
        if not key.strip() or not (text is None or isinstance(text, str)):
            raise BadField(f"{fields.name('criteria')}.{key:.60}", "must be a name with a text or null")
    return {key: text or "" for key, text in sent.items()}


def _yes_no(fields: Fields) -> dict[str, str]:
    inner = Fields(fields.mapping("criteria", {}), fields.name("criteria"))
    found = {"false": inner.text("false", ""), "true": inner.text("true", "")}
    inner.finish()
    return found


def _levels(fields: Fields) -> dict[str, str]:
    sent = fields.items("criteria")
    if not 2 <= len(sent) <= MOST_LEVELS or not all(isinstance(text, str) for text in sent):
        raise BadField(fields.name("criteria"), f"must be a list of 2 to {MOST_LEVELS} texts, the lowest level first")
    return {str(level): text for level, text in enumerate(sent)}


def _content(sent: Any, where: str) -> str:
    text = json.dumps(sent, ensure_ascii=False) if isinstance(sent, dict | list) and sent else sent
    if not isinstance(text, str) or not text.strip():
        raise BadField(where, "must be a text, an object or a list, and not empty")
    return text


def normalised(words: Sequence[str], logprobs: Sequence[float]) -> list[float]:
    """Probabilities over the options from log-probabilities of texts that begin with each."""
    highest = max(logprobs)
    mass = [math.exp(logprob - highest) for logprob in logprobs]
    for place in sorted(range(len(words)), key=lambda i: -len(words[i])):
        longer = [i for i, word in enumerate(words) if i != place and word.startswith(words[place])]
        nearest = [i for i in longer if not any(j != i and words[i].startswith(words[j]) for j in longer)]
        mass[place] = max(mass[place] - sum(math.exp(logprobs[i] - highest) for i in nearest), mass[place] * 1e-9)
    total = sum(mass)
    return [part / total for part in mass]


def known_labels(question: Question, logprobs: Mapping[str, float], classes: Sequence[str]) -> list[float]:
    """Probabilities over the options from those of a classifier's labels.

    Raises:
        UsageError: an option is none of its labels.
    """
    found = []
    for key in question.options:
        told = [logprobs[name] for name in question.labels(key) if not math.isinf(logprobs[name])]
        if not told:
            known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise UsageError(f"the model is a classifier without the label {key!r:.60}; it knows: {known}")
        found.append(told[0])
    highest = max(found)
    mass = [math.exp(logprob - highest) for logprob in found]
    return [part / sum(mass) for part in mass]


def answer(question: Question, probabilities: Sequence[float]) -> dict[str, Any]:
    """One question's answer."""
    told = dict(zip(question.options, probabilities, strict=True))
    if question.kind == "noul":
        return {"type": "noul", "noul": told["true"]}
    common = {"probabilities": told, "confidence": concentration(probabilities)}
    if question.kind == "choice":
        return {"type": "choice", "choice": max(told, key=lambda key: told[key]), **common}
    mean = sum(level * part for level, part in enumerate(probabilities))
    return {"type": "score", "score": mean, "legend": question.options, **common}


def concentration(probabilities: Sequence[float]) -> float:
    """1 minus the entropy as a share of the largest possible one: 0 where all options are equally likely."""
    entropy = -sum(part * math.log(part) for part in probabilities if part > 0)
    return min(1.0, max(0.0, 1.0 - entropy / math.log(len(probabilities))))
