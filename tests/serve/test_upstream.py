"""The client for the engine's server, against bytes cut in every place."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sessions import run

from sizewise.serve.upstream import Broken, Refused, Upstream

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM = HEAD + chunk(b'data: {"a": 1}\n\n') + chunk(b": ping\n\n") + chunk(b'data: {"b": "\xc3\xa9"}\n\ndata: 3\n\n')
EVENTS = [b'{"a": 1}', b'{"b": "\xc3\xa9"}', b"3"]


def against(parts: Sequence[bytes], use: Callable[[Upstream], Any], *, pace_s: float = 0.0, rest_s: float = 0.0) -> Any:
    """What `use` gives when a server answers with these parts, resting between them, then closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(rest_s)
        writer.close()

    async def both() -> Any:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            return await use(Upstream("127.0.0.1", server.sockets[0].getsockname()[1], "key", pace_s))

    return run(both(), 30)


async def events(upstream: Upstream) -> list[bytes]:
    return [one async for batch in upstream.stream("/x", {}) for one in batch]


@pytest.mark.parametrize("pace_s", [0.0, 0.03])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_events_are_whole_however_they_are_cut(size: int, pace_s: float) -> None:
    whole = STREAM + chunk(b"")
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert against(parts, events, pace_s=pace_s) == EVENTS


async def batches(upstream: Upstream) -> list[list[bytes]]:
    return [batch async for batch in upstream.stream("/x", {})]


def test_with_a_pace_words_wait_for_one_another_but_the_first_and_the_last_do_not() -> None:
    said = [b'{"n": %d}' % number for number in range(9)]
    parts = [HEAD, chunk(b'data: {"prompt_progress": 1}\n\n'), *(chunk(b"data: " + one + b"\n\n") for one in said)]
    last = b'{"stop":true}'
    parts += [chunk(b"data: " + last + b"\n\n") + chunk(b"")]
    got = against(parts, batches, pace_s=60.0, rest_s=0.02)  # a pace so slow that only the last word ends the waiting
    assert got == [[b'{"prompt_progress": 1}'], [said[0]], [*said[1:], last]]
    assert against(parts, batches, rest_s=0.02) == [[b'{"prompt_progress": 1}'], *([one] for one in said), [last]]


def test_a_stream_that_breaks_off_while_words_wait_gives_them_first() -> None:
    parts = [HEAD, *(chunk(b"data: %d\n\n" % number) for number in range(3))]
    heard: list[bytes] = []

    async def listen(upstream: Upstream) -> None:
        async for batch in upstream.stream("/x", {}):
            heard.extend(batch)

    with pytest.raises(Broken):
        against(parts, listen, pace_s=60.0, rest_s=0.02)
    assert heard == [b"0", b"1", b"2"]


def test_a_stream_that_breaks_off_is_an_error() -> None:
    with pytest.raises(Broken):
        against([STREAM], events)
    with pytest.raises(Broken):
        against([HEAD[:20]], events)


def test_refusals_carry_status_and_reason() -> None:
    body = b'{"error": {"code": 400, "message": "no\\nsuch thing"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    for use in (events, lambda upstream: upstream.ask("/x", {})):
        with pytest.raises(Refused, match="no such thing") as caught:
            against([head, body], use)
        assert caught.value.status == 400
    with pytest.raises(Refused, match="broke"):
        against([HEAD + chunk(b'error: {"message": "broke"}\n\n') + chunk(b"")], events)


def test_nobody_there() -> None:
    with pytest.raises(Broken, match="connections"):
        run(Upstream("127.0.0.1", 1, "key").ask("/x"), 30)
