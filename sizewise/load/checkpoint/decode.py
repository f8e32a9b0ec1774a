"""The generation loop of the torch runner: transformers' own, watched for stop strings, limits and cancelling."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

Tell = Callable[[int, str], None]  # (index of the request, piece of its answer)
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what half a character decodes to


@dataclass(slots=True)
class Answer:
    """One answer as it grows. Text is let out only once no stop string can begin in it any more."""

    index: int
    prompt: list[int]
    limit: int
    stop: tuple[str, ...]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    first_token_s: float | None = None
    total_s: float = 0.0
    _told: int = 0
    _settled: int = 0  # tokens before this are decoded for good
    _read: int = 0  # tokens before this are in `text`
    _seen: int = 0  # characters, of the text of the tokens from `_settled` on, that are in `text`

    def push(self, token: int, ends: set[int], tokenizer: Any) -> None:
        """Take the next token and notice the end."""
        self.tokens.append(token)
        if token in ends:
            self.finish = "stop"
            return
        # Tokens are decoded with some before them: alone they would lose spaces and split characters.
        now = tokenizer.decode(self.tokens[self._settled :], skip_special_tokens=True)
        whole = now.rstrip(_BROKEN)
        if len(whole) > self._seen:
            self._add(whole[self._seen :])
            self._seen = len(whole)
        if whole == now:
            self._settled, self._read = self._read, len(self.tokens)
            self._seen = len(tokenizer.decode(self.tokens[self._settled :], skip_special_tokens=True))
        if not self.finish and len(self.tokens) >= self.limit:
            self.finish = "length"

    def _add(self, piece: str) -> None:
        longest = max((len(stop) for stop in self.stop), default=0)
        begin = max(0, len(self.text) - longest + 1)
        self.text += piece
        found = [at for at in (self.text.find(stop, begin) for stop in self.stop) if at >= 0]
        if found:
            self.text, self.finish = self.text[: min(found)], "stop"

    def news(self) -> str:
        """Text that has not been told yet and that no stop string can take back."""
        safe = len(self.text)
        if not self.finish:
            for stop in self.stop:
                for size in range(min(len(stop) - 1, len(self.text)), 0, -1):
                    if self.text.endswith(stop[:size]):
                        safe = min(safe, len(self.text) - size)
                        break
        piece = self.text[self._told : safe]
        self._told = max(self._told, safe)
        return piece


class Watch(StoppingCriteria):  # type: ignore[misc]  # the library has no types
    """Sees each new token of a batch; says which rows are done."""

    def __init__(self, answers: list[Answer], ends: set[int], tokenizer: Any, tell: Tell, check: Callable[[], None]):
        self.answers, self.ends, self.tokenizer, self.tell, self.check = answers, ends, tokenizer, tell, check
        self.start = time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(rows,) True where the answer is finished."""
        self.check()
        now = time.perf_counter() - self.start
        for answer, token in zip(self.answers, input_ids[:, -1].tolist(), strict=True):
            if answer.finish:
                continue
            if answer.first_token_s is None:
                answer.first_token_s = now
            answer.push(token, self.ends, self.tokenizer)
            answer.total_s = now
            if piece := answer.news():
                self.tell(answer.index, piece)
        return torch.tensor([bool(answer.finish) for answer in self.answers], device=input_ids.device)


def decode(
    model: Any, tokenizer: Any, answers: list[Answer], sampling: dict[str, Any], tell: Tell, check: Callable[[], None]
) -> None:
    """Finish all `answers` in one batch, padded on the left so that all prompts end at the same place.

    Args:
        model: a causal language model whose `generation_config` holds its end tokens.
        tokenizer: its tokenizer.
        answers: with prompts; filled in.
        sampling: fields of core's Sampling, the same for all.
        tell: gets pieces of text.
        check: raises to cancel; called at each token.
    """
    config = model.generation_config
    ends = config.eos_token_id or []
    width = max(len(answer.prompt) for answer in answers)
    padding = [width - len(answer.prompt) for answer in answers]
    rows = zip(padding, answers, strict=True)
    ids = torch.tensor([[config.pad_token_id] * pad + answer.prompt for pad, answer in rows], device=model.device)
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=model.device)
    sampled = sampling["temperature"] > 0
    drawing = {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": sampling["top_k"]}
    drawing |= {"min_p": sampling["min_p"]} if sampling["min_p"] else {}
    torch.manual_seed(sampling["seed"])
    watch = Watch(answers, set(ends), tokenizer, tell, check)
    settings = GenerationConfig(
        max_new_tokens=max(answer.limit for answer in answers),
        do_sample=sampled,
        repetition_penalty=sampling["repeat_penalty"],
        eos_token_id=ends or None,
        pad_token_id=config.pad_token_id,
        **(drawing if sampled else {}),
    )
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
