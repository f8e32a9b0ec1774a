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


def against(parts: Sequence[bytes], use: Callable[[Upstream], Any]) -> Any:
    """What `use` gives when a server answers with these parts, then closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async def both() -> Any:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            return await use(Upstream("127.0.0.1", server.sockets[0].getsockname()[1], "key"))

    return run(both(), 30)


async def events(upstream: Upstream) -> list[bytes]:
    return [one async for batch in upstream.stream("/x", {}) for one in batch]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_events_are_whole_however_they_are_cut(size: int) -> None:
    whole = STREAM + chunk(b"")
    assert against([whole[at : at + size] for at in range(0, len(whole), size)], events) == EVENTS


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
