"""Clients that leave, stall, drip, half-close, pipeline and flood. A scene returns its outcome or raises `Wrong`."""

import asyncio
from contextlib import AsyncExitStack

from benchmarks.soak.dialects import DIALECTS, OPENAI
from benchmarks.soak.scenes import Scene
from benchmarks.soak.servers import CHAOS, ECHO, FAR
from benchmarks.soak.stage import Stage, Wrong, expect
from benchmarks.soak.wire import Connection, Gone, connected, request

_MANY_WORDS = 4_000  # in five choices, far more than sockets hold
_FLOOD = 100
_PIPELINED = 30
_SLOW_BUFFER = 4_096


async def leave_in_request(stage: Stage) -> str:
    """At any byte of it."""
    data = stage.chat(stage.chance.choice(DIALECTS), stage.chance.choice((ECHO, FAR, CHAOS)))
    async with connected(stage.port) as connection:
        await connection.send(data[: stage.chance.randrange(len(data) + 1)])
        return await _leave(stage, connection)


async def leave_in_answer(stage: Stage) -> str:
    """At any byte of it, while it comes or before it has begun."""
    dialect, model = stage.chance.choice(DIALECTS), stage.chance.choice((ECHO, FAR, CHAOS))
    asked = stage.chat(dialect, model, last=stage.prompts.text(500), limit=10_000)
    async with connected(stage.port) as connection:
        await connection.send(asked.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        left = stage.chance.choice((0, stage.chance.randrange(2_000), stage.chance.randrange(100_000)))
        while left and (data := await connection.reader.read(left)):
            left -= len(data)
        return await _leave(stage, connection)


async def read_nothing(stage: Stage) -> str:
    """Megabytes come, and nobody reads them: the server ends it."""
    asked = stage.chat(
        OPENAI,
        stage.chance.choice((ECHO, FAR)),
        last=stage.prompts.text(_MANY_WORDS),
        stream=True,
        choices=5,
        limit=100_000,
    )
    async with connected(stage.port, buffer=_SLOW_BUFFER) as connection:
        await connection.send(asked)
        head = (await connection.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        request_id = head.partition("msh-request-id: ")[2].partition("\r")[0]
        outcome = await _settled(stage, request_id)  # while the connection is still open here
        if outcome != "cancelled":
            raise Wrong(f"an answer that nobody read had the outcome {outcome!r}")
        return "cut"


async def read_slowly(stage: Stage) -> str:
    """Every byte, in its own time."""
    last = stage.prompts.text(400)
    async with connected(stage.port, buffer=_SLOW_BUFFER) as connection:
        await connection.send(
            stage.chat(OPENAI, stage.chance.choice((ECHO, FAR)), last=last, stream=True, limit=10_000)
        )
        received = bytearray()
        while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            if not (data := await connection.reader.read(2_000)):
                raise Wrong(f"an answer that was read slowly ended with {bytes(received[-200:])!r}")
            received += data
            await asyncio.sleep(0.02)
    return "whole"


async def drip(stage: Stage) -> str:
    """A head or a body that never becomes whole, byte by byte."""
    data = stage.chat(OPENAI, ECHO)
    head = data.index(b"\r\n\r\n")
    begun = stage.chance.choice((1, head // 2, head + 4, (head + 4 + len(data)) // 2))
    async with connected(stage.port) as connection:
        await connection.send(data[:begun])
        answered = asyncio.create_task(connection.answer())
        try:
            for place in range(begun, len(data) - 1):
                await asyncio.wait([answered], timeout=0.2)
                if answered.done():
                    break
                await connection.send(data[place : place + 1])
            return expect(await answered, 408)
        except Gone:
            return "cut"
        finally:
            answered.cancel()


async def half_close(stage: Stage) -> str:
    """Nothing more to send, after a request or in it: to the server it is leaving."""
    data = stage.chat(stage.chance.choice(DIALECTS), stage.chance.choice((ECHO, FAR)), last=stage.prompts.text(300))
    whole = stage.chance.random() < 0.5
    async with connected(stage.port) as connection:
        await connection.send(data if whole else data[: stage.chance.randrange(1, len(data))])
        connection.writer.write_eof()
        received = await connection.until_closed()
    if received and not whole:
        raise Wrong(f"half a request was answered with {received[:200]!r}")
    return "answered" if received else "closed"


async def pipeline(stage: Stage) -> str:
    """Many requests in one write; every answer in its turn."""
    texts = [stage.prompts.text(3) for _ in range(stage.chance.randint(2, _PIPELINED))]
    models = stage.chance.choices((ECHO, FAR), k=len(texts))
    asked = [stage.chat(OPENAI, model, last=text) for model, text in zip(models, texts, strict=True)]
    async with connected(stage.port) as connection:
        await connection.send(b"".join(asked))
        for text in texts:
            answer = await connection.answer()
            expect(answer, 200)
            if (said := OPENAI.said(answer)).text != text:
                raise Wrong(f"the answer {said.text!r} in the place of {text!r}")
    return f"{len(texts) // 10 * 10} and more"


async def leave_a_pipeline(stage: Stage) -> str:
    asked = [stage.chat(OPENAI, stage.chance.choice((ECHO, FAR)), last=stage.prompts.text(50)) for _ in range(10)]
    async with connected(stage.port) as connection:
        await connection.send(b"".join(asked))
        await connection.reader.read(stage.chance.randrange(1, 5_000))
        return await _leave(stage, connection)


async def flood(stage: Stage) -> str:
    """Connections that say nothing, or half of something, until the server ends them."""
    head = request(OPENAI.path, stage.key)[:-2]
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(stage.port)) for _ in range(_FLOOD)]
        for connection in connections:
            await connection.send(head[: stage.chance.choice((0, 0, 1, len(head)))])
        await asyncio.gather(*[connection.until_closed() for connection in connections])
    return "cut"


HOSTILE: dict[Scene, float] = {
    leave_in_request: 6,
    leave_in_answer: 8,
    read_nothing: 0.5,
    read_slowly: 1,
    drip: 2,
    half_close: 2,
    pipeline: 2,
    leave_a_pipeline: 1,
    flood: 0.2,
}
"""How often each plays, in proportion, as in `SCENES`."""


async def _leave(stage: Stage, connection: Connection) -> str:
    if stage.chance.random() < 0.5:
        connection.reset()
        return "reset"
    return "closed"


async def _settled(stage: Stage, request_id: str) -> str:
    """The outcome in a request's usage record, once there is one."""
    while True:
        answer = await stage.ask(request(f"/v1/usage/{request_id}", stage.key, method="GET"))
        if answer.status == 200:
            return str(answer.json["outcome"])
        expect(answer, 404)
        await asyncio.sleep(0.5)
