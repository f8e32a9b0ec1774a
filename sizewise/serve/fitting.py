"""Prompts that are longer than the context: cut where the request asks for it, and never without saying so.

Of a conversation the oldest turns go first; what the system says and the last question stay. Of a plain text the middle
goes: the first `keep` tokens stay, and the end.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from sizewise.core.errors import TooLong
from sizewise.serve.engine import Engine
from sizewise.serve.job import Draw, Turn

Prompt = Callable[[tuple[Turn, ...]], Awaitable[list[int]]]  # the tokens of a conversation's prompt
_FRAME = 4  # tokens that a template may put around a turn: an estimate, checked by rendering again


def room_for_prompt(context: int, draw: Draw) -> int:
    """How many tokens a cut prompt may have: what the answer wants is left, but at most half of the context."""
    wanted = context // 4 if draw.max_tokens is None else draw.max_tokens
    return context - max(1, min(wanted, context // 2))


def cut_tokens(tokens: list[int], draw: Draw, context: int, start: int) -> list[int]:
    """A prompt without its middle; `start`: tokens that every prompt begins with."""
    room = room_for_prompt(context, draw)
    keep = min(max(draw.keep, start), room - 1)
    return [*tokens[:keep], *tokens[len(tokens) - (room - keep) :]]


async def cut_turns(
    engine: Engine, turns: Sequence[Turn], prompt: Prompt, draw: Draw, context: int
) -> tuple[tuple[Turn, ...], list[int]]:
    """A conversation without its oldest turns, and its prompt.

    Raises:
        TooLong: not even the system's text and the last question fit, with as little of that as makes sense.
    """
    kept, room = list(turns), room_for_prompt(context, draw)
    while True:
        tokens = await prompt(tuple(kept))
        excess = len(tokens) - room
        if excess <= 0:
            return tuple(kept), tokens
        sizes = await engine.count([turn.content for turn in kept])
        oldest = _oldest(kept, [size + _FRAME for size in sizes], excess)
        if oldest:
            kept = [turn for place, turn in enumerate(kept) if place not in oldest]
        else:
            kept = await _shorter_question(engine, kept, excess, (len(tokens), context))


def _oldest(turns: list[Turn], sizes: list[int], excess: int) -> set[int]:
    """The turns to leave out: from the first one on as many as are needed, up to the next question of the user."""
    questions = [place for place, turn in enumerate(turns) if turn.role == "user"]
    last = questions[-1] if questions else len(turns) - 1
    gone: set[int] = set()
    for place in range(last):
        if turns[place].role == "system":
            continue
        if excess <= 0 and turns[place].role == "user":
            break
        gone.add(place)
        excess -= sizes[place]
    return gone


async def _shorter_question(engine: Engine, turns: list[Turn], excess: int, counts: tuple[int, int]) -> list[Turn]:
    """The longest turn that is not the system's, without its beginning."""
    places = [place for place, turn in enumerate(turns) if turn.role != "system" and turn.content]
    if not places:
        raise TooLong(engine.model.name, *counts)
    place = max(places, key=lambda at: len(turns[at].content))
    tokens = await engine.encode(turns[place].content, special=False, bos=False)
    rest = tokens[excess + _FRAME :]
    if not rest:
        raise TooLong(engine.model.name, *counts)
    text = (await engine.decode(rest)).decode("utf-8", "ignore")
    return [*turns[:place], replace(turns[place], content=text), *turns[place + 1 :]]
