"""What clients that mean well do, and the errors that they make. A scene returns its outcome or raises `Wrong`."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from benchmarks.soak.dialects import DIALECTS, OPENAI, NotAnAnswer
from benchmarks.soak.servers import CHAOS, ECHO, FAR, FAR_SMALL, SMALL, SMALL_WINDOW
from benchmarks.soak.stage import Stage, Wrong, expect
from benchmarks.soak.wire import Answer, connected, request

Scene = Callable[[Stage], Awaitable[str]]

_COUNT = "/v1/tokenizers/estimate-token-count"
_NEST = 100_000


async def chat(stage: Stage) -> str:
    """A conversation, here or passed on, with or without tools; the answer is the last thing said."""
    dialect, model = stage.chance.choice(DIALECTS), stage.chance.choice((ECHO, FAR))
    last = stage.prompts.last()
    tools = stage.prompts.tools() if stage.chance.random() < 0.3 else None
    choices = stage.chance.choice((1, 1, 1, 3))
    asked = stage.chat(
        dialect, model, last=last, limit=100_000, system=stage.prompts.prefix(), tools=tools, choices=choices
    )
    answer = await stage.ask(asked)
    outcome = expect(answer, 200)
    if (said := dialect.said(answer)).text != last:
        raise Wrong(f"{model} said {said.text[:200]!r} and not {last[:200]!r}")
    return outcome


async def cut(stage: Stage) -> str:
    """An answer that the limit on its output ends."""
    dialect, limit = stage.chance.choice(DIALECTS), stage.chance.randint(1, 40)
    asked = stage.chat(dialect, stage.chance.choice((ECHO, FAR)), last=stage.prompts.text(200), limit=limit)
    answer = await stage.ask(asked)
    outcome = expect(answer, 200)
    said = dialect.said(answer)
    if said.output != limit or said.finish not in ("length", "max_tokens"):
        raise Wrong(f"{said.output} tokens and the end {said.finish!r} with a limit of {limit}")
    return outcome


async def calls(stage: Stage) -> str:
    """Calls of tools that nobody has seen before, from an engine that fails half the time."""
    dialect, tools = stage.chance.choice(DIALECTS), stage.prompts.tools()
    asked = stage.chat(dialect, CHAOS, limit=2_000, tools=tools, must_call=True, system=stage.prompts.prefix())
    answer = await stage.ask(asked)
    outcome = expect(answer, 200, 500, 503, 504)
    if answer.status != 200:
        return outcome
    try:
        said = dialect.said(answer)
    except NotAnAnswer:
        return "200, and an error in the stream"
    if said.finish in ("tool_calls", "tool_use"):
        declared = {tool.name for tool in tools}
        if not said.calls or any(name not in declared or _broken(given) for name, given in said.calls):
            raise Wrong(f"these calls of {declared}: {said.calls}")
    return outcome


async def formatted(stage: Stage) -> str:
    """JSON under a schema that nobody has seen before, from an engine that fails half the time."""
    schema = {"name": "answer", "strict": True, "schema": stage.prompts.schema()}
    body = OPENAI.body(CHAOS, stage.prompts.conversation(stage.prompts.text(20)), limit=2_000, stream=False)
    asked = json.dumps(json.loads(body) | {"response_format": {"type": "json_schema", "json_schema": schema}}).encode()
    answer = await stage.ask(request(OPENAI.path, stage.key, asked))
    outcome = expect(answer, 200, 500, 503, 504)
    if answer.status == 200 and (said := OPENAI.said(answer)).finish == "stop" and _broken(said.text):
        raise Wrong(f"this in the place of an object: {said.text[:200]!r}")
    return outcome


async def look_around(stage: Stage) -> str:
    """The small endpoints, one after the other on one connection."""
    async with connected(stage.port) as connection:
        for path in ("/v1/models", "/v1/users/me/balance", "/healthz", "/readyz", "/openapi.json", "/v1/usage"):
            expect(await connection.ask(request(path, stage.key, method="GET")), 200)
        counted = OPENAI.body(ECHO, stage.prompts.conversation(stage.prompts.last()), limit=5, stream=False)
        return expect(await connection.ask(request(_COUNT, stage.key, counted)), 200)


async def key_life(stage: Stage) -> str:
    """A key is made, changed, used, revoked and refused."""
    administrator, chance = stage.administrator, stage.chance
    limits = {"rpm": chance.randint(100, 1_000), "tpm": 10**9, "concurrency": 10} if chance.random() < 0.5 else {}
    key_id, secret = await administrator.key(stage.rich, limits=limits)
    async with connected(stage.port) as connection:
        for _ in range(chance.randint(1, 4)):
            asked = stage.chat(chance.choice(DIALECTS), chance.choice((ECHO, FAR)), key=secret)
            expect(await connection.ask(asked), 200)
        if chance.random() < 0.5:
            await administrator.call("PATCH", f"keys/{key_id}", {"name": "changed", "models": [ECHO]})
        await administrator.call("DELETE", f"keys/{key_id}")
        return expect(await connection.ask(stage.chat(OPENAI, ECHO, key=secret)), 401)


async def organization_life(stage: Stage) -> str:
    """An organization is made, shown and deleted, or gets its first key, one request and usage."""
    administrator, name = stage.administrator, f"org-{stage.chance.getrandbits(64):x}"
    if stage.chance.random() < 0.5:
        owner = (await administrator.call("POST", "organizations", {"name": name, "region": "global"}))["id"]
        await administrator.call("GET", f"organizations/{owner}")
        await administrator.call("DELETE", f"organizations/{owner}")
        return "deleted"
    key_id, secret = await administrator.key(await administrator.project(name, money="5", tier=5))
    expect(await stage.ask(stage.chat(OPENAI, ECHO, key=secret)), 200)
    await administrator.call("GET", "usage?group_by=model")
    await administrator.call("DELETE", f"keys/{key_id}")
    return "used"


async def too_often(stage: Stage) -> str:
    """More requests than a key may make in a minute; the minute may end between them."""
    key_id, secret = await stage.administrator.key(stage.rich, limits={"rpm": 2})
    async with connected(stage.port) as connection:
        answers = [await connection.ask(stage.chat(OPENAI, ECHO, key=secret)) for _ in range(5)]
    await stage.administrator.call("DELETE", f"keys/{key_id}")
    outcome = _some_refused(answers, "rate_limit_reached_error")
    if outcome == "none refused":
        raise Wrong("five of two a minute were answered")
    return outcome


async def too_many(stage: Stage) -> str:
    """More requests at once than a key may have open."""
    key_id, secret = await stage.administrator.key(stage.rich, limits={"concurrency": 1})
    long = stage.prompts.text(300)
    asked = [stage.chat(OPENAI, ECHO, key=secret, last=long, limit=10_000) for _ in range(4)]
    answers = await asyncio.gather(*map(stage.ask, asked))
    await stage.administrator.call("DELETE", f"keys/{key_id}")
    return _some_refused(answers, "rate_limit_reached_error")


async def too_poor(stage: Stage) -> str:
    """A request that may cost more than its organization has."""
    key_id, secret = await stage.administrator.key(stage.poor)
    answer = await stage.ask(stage.chat(stage.chance.choice(DIALECTS), ECHO, key=secret, limit=100_000))
    await stage.administrator.call("DELETE", f"keys/{key_id}")
    return expect(answer, 429)


async def bad_key(stage: Stage) -> str:
    secret = stage.chance.choice(("sk-wrong", f"sk-{stage.chance.getrandbits(128):x}", "a b", "sk-é"))
    return expect(await stage.ask(stage.chat(stage.chance.choice(DIALECTS), ECHO, key=secret)), 401)


async def bad_json(stage: Stage) -> str:
    dialect, chance = stage.chance.choice(DIALECTS), stage.chance
    good = dialect.body(ECHO, stage.prompts.conversation("Hello"), limit=5, stream=False)
    body = chance.choice(
        (
            good[: chance.randrange(1, len(good))],
            good.replace(b"Hello", b"\xff\xfe"),
            b"[" * _NEST,
            b'{"messages":' * 1_000 + b"1" + b"}" * 1_000,
            good.replace(b'"messages"', b'"massages"'),
            good.replace(b'"Hello"', chance.choice((b"7", b"null", b'{"a": 1}', b"[[]]"))),
            good.replace(b'"user"', b'"nobody"'),
            chance.randbytes(300),
        )
    )
    return expect(await stage.ask(request(dialect.path, stage.key, body)), 400)


async def bad_schema(stage: Stage) -> str:
    tool = stage.prompts.tools(1)[0]
    tool.schema["properties"] = {"a": stage.chance.choice(({"type": "nothing"}, {"$ref": "#/none"}, {"type": 7}))}
    asked = stage.chat(stage.chance.choice(DIALECTS), CHAOS, tools=[tool])
    return expect(await stage.ask(asked), 400)


async def unknown_model(stage: Stage) -> str:
    model = f"no-such-{stage.chance.getrandbits(32):x}"
    return expect(await stage.ask(stage.chat(stage.chance.choice(DIALECTS), model)), 404)


async def unknown_path(stage: Stage) -> str:
    path = stage.chance.choice(
        (f"/v1/{stage.chance.getrandbits(32):x}", "/admin/v1/nothing", "/", "/v1/chat/completions")
    )
    return expect(await stage.ask(request(path, stage.key, method="GET")), 404)


async def over_long(stage: Stage) -> str:
    """A prompt over the window, here or at the server behind."""
    model, words = stage.chance.choice((SMALL, FAR_SMALL)), stage.chance.randint(SMALL_WINDOW, 10 * SMALL_WINDOW)
    asked = stage.chat(stage.chance.choice(DIALECTS), model, last=stage.prompts.text(words))
    return expect(await stage.ask(asked), 400)


async def another_host(stage: Stage) -> str:
    asked = stage.chat(OPENAI, ECHO).replace(b"Host: localhost", b"Host: moon.example")
    return expect(await stage.ask(asked), 421)


async def no_http(stage: Stage) -> str:
    """Bytes that are no request, and heads that are too large."""
    chance = stage.chance
    data, status = chance.choice(
        (
            (b"hello there\r\n\r\n", 400),
            (b"\x16\x03\x01\x00\xa5" + chance.randbytes(100) + b"\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
            (b"GET /" + b"a" * 1_000_000, 431),
            (b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 100_000, 431),
        )
    )
    return expect(await stage.ask(data), status)


SCENES: dict[Scene, float] = {
    chat: 34,
    cut: 6,
    calls: 6,
    formatted: 3,
    look_around: 2,
    key_life: 4,
    organization_life: 1,
    too_often: 1,
    too_many: 1,
    too_poor: 1,
    bad_key: 2,
    bad_json: 4,
    bad_schema: 1,
    unknown_model: 2,
    unknown_path: 1,
    over_long: 2,
    another_host: 1,
    no_http: 2,
}
"""How often each plays, in proportion."""


def _some_refused(answers: list[Answer], reason: str) -> str:
    for answer in answers:
        expect(answer, 200, 429)
        if answer.status == 429 and answer.error != reason:
            raise Wrong(f"refused with {answer.body[:200]!r}")
    refused = sum([answer.status == 429 for answer in answers])
    if answers[0].status != 200 and refused == len(answers):
        raise Wrong("all were refused")
    return "some refused" if refused else "none refused"


def _broken(text: str) -> bool:
    try:
        return not isinstance(json.loads(text), dict)
    except ValueError:
        return True
