"""Each rule of the wire is broken by somebody between us and a sound server, and found by the check for it."""

import asyncio
import http.client
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.e2e.server import K2, Server
from tests.engines.upstream.server import Peer, nothing_left, serving

from moonbase.engines.upstream.client import UpstreamClient
from moonbase.errors import EndpointFailed
from moonbase.verify.contract import chosen_checks, verify_contract
from moonbase.verify.endpoint import Access, Endpoint
from moonbase.verify.probe import ModelTraits, Probe
from moonbase.verify.refusal_checks import REFUSALS
from moonbase.verify.report import Report, Selection
from moonbase.verify.run import Examination, examine

Json = dict[str, Any]


def as_it_is(given: Any) -> Any:
    return given


@dataclass(frozen=True)
class Meddling:
    """What is changed on the way: of requests, of whole answers, of the chunks of a stream.

    `red` are the checks that must fail. With `own_key` the server sees its own key, whatever the client sent.
    """

    name: str
    red: set[str] = field(default_factory=set)
    request: Callable[[Json], Json] = as_it_is
    whole: Callable[[Json], Json] = as_it_is
    stream: Callable[[list[Json]], list[Json]] = as_it_is
    done: bool = True
    own_key: bool = False


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # with fewer places than requests at a time, connecting is tried again after a second

    def __init__(self, server: Server, meddling: Meddling) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = server
        self.meddling = meddling


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits until its head is acknowledged
    server: Proxy

    def do_POST(self) -> None:
        meddling, target = self.server.meddling, self.server.target
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {"Content-Type": "application/json"}
        if (key := self.headers["Authorization"]) is not None:
            headers["Authorization"] = key
        if meddling.own_key:
            headers["Authorization"] = f"Bearer {target.key}"
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=20)
        connection.request("POST", self.path, json.dumps(meddling.request(fields)), headers)
        response = connection.getresponse()
        body, kind = response.read(), response.headers["Content-Type"]
        connection.close()
        if kind.startswith("text/event-stream"):
            events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
            chunks = meddling.stream([json.loads(event) for event in events if event != b"[DONE]"])
            frames = [json.dumps(chunk).encode() for chunk in chunks] + ([b"[DONE]"] if meddling.done else [])
            body = b"".join([b"data: " + frame + b"\n\n" for frame in frames])
        else:
            body = json.dumps(meddling.whole(json.loads(body))).encode()
        self.send_response(response.status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("chaos"), "--set", "chaos.fault_rate=0", engine="chaos")
    yield server
    server.close()


@contextmanager
def between(server: Server, meddling: Meddling) -> Iterator[str]:
    """The address of a proxy that does this."""
    with Proxy(server, meddling) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}/v1"
        finally:
            proxy.shutdown()
            thread.join()


def verify(url: str, key: str, *only: str) -> Report:
    access = Access(model=K2, api_key=key, retries=0, concurrency=32)
    wanted = Examination(url=url, access=access, selection=Selection(only), timeout=20)
    return asyncio.run(examine(wanted, lambda _name, _steps: lambda: None))


def changed(change: Callable[[Json], Any], *, last: bool = False) -> Callable[[list[Json]], list[Json]]:
    """Applies `change` to each choice of a stream, or to the last ones of each choice only."""

    def apply(chunks: list[Json]) -> list[Json]:
        for chunk in chunks:
            for choice in chunk["choices"]:
                if not last or choice["finish_reason"] is not None:
                    change(choice)
        return chunks

    return apply


def calls_changed(change: Callable[[Json], Any]) -> Callable[[Json], Json]:
    """Applies `change` to each call of a whole answer."""

    def apply(body: Json) -> Json:
        for choice in body.get("choices", ()):
            for call in choice["message"].get("tool_calls", ()):
                change(call)
        return body

    return apply


def delta_calls_changed(change: Callable[[Json], Any], *, first: bool) -> Callable[[list[Json]], list[Json]]:
    """Applies `change` to each delta that begins a call, or to each other one."""

    def apply(choice: Json) -> None:
        for call in choice["delta"].get("tool_calls", ()):
            if ("id" in call) is first:
                change(call)

    return changed(apply)


def without(name: str) -> Callable[[Json], Json]:
    return lambda fields: {key: value for key, value in fields.items() if key != name}


def fresh_ids(chunks: list[Json]) -> list[Json]:
    return [chunk | {"id": f"chatcmpl-{number}"} for number, chunk in enumerate(chunks)]


def with_empty_calls(chunks: list[Json]) -> list[Json]:
    more = chunks[0] | {"choices": [{"index": 0, "delta": {"tool_calls": []}, "finish_reason": None}]}
    return [chunks[0], more, *chunks[1:]]


def without_usage_chunk(chunks: list[Json]) -> list[Json]:
    return [chunk for chunk in chunks if chunk["choices"]]


def with_wrong_total(body: Json) -> Json:
    if "usage" in body:
        body["usage"]["total_tokens"] += 1
    return body


def stopped(body: Json) -> Json:
    for choice in body.get("choices", ()):
        choice["finish_reason"] = choice["finish_reason"].replace("tool_calls", "stop")
    return body


def always_call(fields: Json) -> Json:
    return fields | {"tool_choice": "required"} if fields.get("tool_choice") == "none" else fields


def bare_errors(body: Json) -> Json:
    error: Json = body.get("error", body)
    return error


def other_errors(body: Json) -> Json:
    return {"error": body["error"] | {"type": "BadRequestError"}} if "error" in body else body


ERRORS = {f"errors.{refusal.name}" for refusal in REFUSALS}
MEDDLINGS = [
    Meddling("nothing"),
    Meddling("no usage in choices", {"stream.usage"}, stream=changed(lambda choice: choice.pop("usage", None))),
    Meddling("usage too early", {"stream.usage"}, stream=changed(lambda choice: choice.setdefault("usage", {"a": 1}))),
    Meddling("no usage chunk", {"stream.include_usage"}, stream=without_usage_chunk),
    Meddling("no [DONE]", {"stream.frames"}, done=False),
    Meddling("another id in each chunk", {"stream.frames"}, stream=fresh_ids),
    Meddling("roles", {"stream.role"}, stream=changed(lambda choice: choice["delta"].update(role="assistant"))),
    Meddling(
        "no finish reason",
        {"stream.finish", "chat.finish", "chat.length", "chat.stop", "chat.n"},
        stream=changed(lambda choice: choice.update(finish_reason=None), last=True),
    ),
    Meddling("stop after calls", {"chat.finish"}, whole=stopped),
    Meddling("wrong sums", {"chat.usage"}, whole=with_wrong_total),
    Meddling("empty lists of calls", {"tools.deltas"}, stream=with_empty_calls),
    Meddling(
        "types repeated",
        {"tools.deltas"},
        stream=delta_calls_changed(lambda call: call.update(type="function"), first=False),
    ),
    Meddling(
        "arguments in the first delta",
        {"tools.deltas"},
        stream=delta_calls_changed(lambda call: call["function"].update(arguments=" "), first=True),
    ),
    Meddling(
        "ids of another form",
        {"tools.ids"},
        whole=calls_changed(lambda call: call.update(id="call_abc")),
        stream=delta_calls_changed(lambda call: call.update(id="call_abc"), first=True),
    ),
    Meddling(
        "ids that begin again", {"tools.ids"}, whole=calls_changed(lambda call: call.update(id=call["id"][:-1] + "0"))
    ),
    Meddling("calls without index", {"tools.fields"}, whole=calls_changed(lambda call: call.pop("index"))),
    Meddling("stop strings ignored", {"chat.stop"}, request=without("stop")),
    Meddling("limits ignored", {"chat.length", "tools.cut"}, request=without("max_tokens")),
    Meddling("n ignored", {"chat.n"}, request=without("n")),
    Meddling(
        "response_format ignored",
        {"json.object", "json.schema", "errors.format_unknown", "errors.format_no_schema"},
        request=without("response_format"),
    ),
    Meddling("calls despite none", {"tools.none"}, request=always_call),
    Meddling("every key is good", {"errors.key_missing", "errors.key_unknown"}, own_key=True),
    Meddling("errors without an envelope", ERRORS, whole=bare_errors),
    Meddling("errors of another type", ERRORS, whole=other_errors),
]


@pytest.mark.parametrize("meddling", MEDDLINGS, ids=lambda meddling: meddling.name)
def test_a_broken_rule_is_found_by_its_check(meddling: Meddling, sound: Server) -> None:
    with between(sound, meddling) as url:
        report = verify(url, sound.key)

    failed = {result.name: result.seen[0] for result in report.results if result.status == "failed"}
    assert set(failed) == meddling.red, failed


def test_another_answer_to_the_same_question_is_a_warning(sound: Server) -> None:
    def longer(body: Json) -> Json:
        for choice in body.get("choices", ()):
            choice["message"]["content"] += "!"
        return body

    with between(sound, Meddling("longer", whole=longer)) as url:
        report = verify(url, sound.key, "stream.equal")

    assert [result.status for result in report.results] == ["warned"]
    assert report.passed


def shaken(value: Any, chance: random.Random) -> Any:
    """`value` with some of its parts replaced by what does not belong there."""
    if chance.random() < 0.06:
        return chance.choice([None, 1, -1.5, "x", "", [], {}, [1], {"a": 1}, True, "\ud83d\ude00"])
    if isinstance(value, dict):
        return {key: shaken(inner, chance) for key, inner in value.items()}
    return [shaken(inner, chance) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(6))
def test_no_answer_however_odd_ends_the_examination(seed: int, sound: Server) -> None:
    chance = random.Random(seed)

    def whole(body: Json) -> Any:
        return body if "Say hello." in json.dumps(body) else shaken(body, chance)

    with between(sound, Meddling("odd", whole=whole, stream=lambda chunks: shaken(chunks, chance) or [])) as url:
        report = verify(url, sound.key)

    assert not report.passed


@pytest.mark.parametrize(
    ("meddling", "said"),
    [
        (Meddling("no choices", whole=lambda body: {"object": "list"}), "an answer without choices"),
        (Meddling("no object", whole=lambda body: [body]), "is no OpenAI-compatible endpoint"),
    ],
)
def test_what_is_no_chat_endpoint_is_not_examined(meddling: Meddling, said: str, sound: Server) -> None:
    with between(sound, meddling) as url, pytest.raises(EndpointFailed, match=said):
        verify(url, sound.key)


def test_a_key_that_the_server_repeats_is_not_told(sound: Server) -> None:
    def telling(body: Json) -> Json:
        return {"error": {"message": f"no such key: {secret}", "type": "x"}} if "error" in body else body

    secret = "sk-this-must-not-be-seen"
    with between(sound, Meddling("telling", whole=telling)) as url, pytest.raises(EndpointFailed) as raised:
        verify(url, secret)

    assert "no such key: …" in str(raised.value)


@pytest.mark.anyio
async def test_nothing_is_asked_any_more_once_an_examination_has_failed() -> None:
    class Enough(Exception):
        pass

    asked = 0

    async def refusing(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.read_request()
            asked += 1
            await asyncio.sleep(0.02)
            await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    def done() -> None:
        raise Enough

    with nothing_left():
        async with serving(refusing) as server, UpstreamClient(f"{server.url}/v1") as client:
            traits = ModelTraits()
            probe = Probe(Endpoint(client, Access(model=K2, retries=0, concurrency=2)), traits)
            with pytest.raises(Enough):
                await verify_contract(probe, chosen_checks(traits, Selection()), [], done)
            then = asked
            await asyncio.sleep(0.3)
            assert asked <= then + 1


@pytest.mark.anyio
async def test_a_question_is_asked_once_and_again_only_where_its_asker_was_stopped() -> None:
    asked = 0

    async def refusing(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.read_request()
            asked += 1
            await asyncio.sleep(0.1)
            await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with nothing_left():
        async with serving(refusing) as server, UpstreamClient(f"{server.url}/v1") as client:
            probe = Probe(Endpoint(client, Access(model=K2, retries=0)), ModelTraits())
            first, *others = [asyncio.create_task(probe.ask("x", {"messages": []})) for _ in range(3)]
            await asyncio.sleep(0.05)
            first.cancel()
            answers = await asyncio.gather(*others)
            assert answers[0] is answers[1] is await probe.ask("x", {"messages": []})
    assert (asked, len(probe.answers)) == (2, 1)
