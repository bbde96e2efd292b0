"""The vendor verifier's definitions (kimi-protocol.md 4.1)."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.engines.upstream.server import Peer, nothing_left, serving

from moonbase.engines.upstream.client import UpstreamClient
from moonbase.errors import ConfigurationError
from moonbase.verify.answers import Answer, Call, Choice
from moonbase.verify.endpoint import Access, Endpoint
from moonbase.verify.report import Selection
from moonbase.verify.vendor import (
    Trigger,
    VendorPlan,
    VendorRun,
    calls_valid,
    compare,
    prepare,
    read_lines,
    read_reasons,
    summarize,
)

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {
            "type": "object",
            "properties": {"queries": {"type": "array", "items": {"type": "string"}}},
            "required": ["queries"],
        },
    },
}


def answer(*calls: tuple[str, str], reason: str = "tool_calls") -> Answer:
    found = tuple([Call("id", name, arguments) for name, arguments in calls])
    return Answer(request={}, status=200, choices=(Choice(0, calls=found, finish_reason=reason),))


def test_a_request_is_prepared_as_the_verifier_does() -> None:
    line = {
        "model": "moonshot",
        "messages": [{"role": "user", "content": "你好"}, {"role": "_input", "content": "x"}],
        "stream": True,
        "temperature": 0.6,
    }
    prepared = prepare(3, line, "kimi", {"max_tokens": 64})

    assert prepared.request == {
        "model": "kimi",
        "messages": [{"role": "user", "content": "你好"}, {"role": "system", "content": "x"}],
        "stream": True,
        "temperature": 0.6,
        "max_tokens": 64,
        "stream_options": {"include_usage": True},
    }
    # md5 of {"max_tokens": 64, "messages": [{"content": "你好", …, with a space after each colon and comma
    assert prepared.digest == "bea16c07c54bc6633a6018c2aafafa97"
    assert line["messages"][1]["role"] == "_input"  # the file's own is left alone


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(("search", '{"queries": ["a"]}')), True),
        (answer(("search", '{"queries": ["a"]}'), ("search", '{"queries": []}')), True),
        (answer(("search", '{"queries": ["a"]}'), ("search", '{"queries": "a"}')), False),
        (answer(("search", '{"queries": ["a"]')), False),
        (answer(("find", '{"queries": ["a"]}')), False),
        (answer(("bare", "{}")), False),
        (answer(), None),
        (answer(("search", "{}"), reason="stop"), None),
    ],
)
def test_an_answer_is_valid_when_all_its_calls_are(given: Answer, expected: bool | None) -> None:
    bare = {"type": "function", "function": {"name": "bare", "parameters": {}}}
    assert calls_valid(given, {"tools": [SEARCH, bare]}) is expected


def test_trigger_agreement_is_by_request() -> None:
    official = {1: "tool_calls", 2: "tool_calls", 3: "stop", 4: "stop", 5: "tool_calls", 9: "tool_calls"}
    own = {1: "tool_calls", 2: "stop", 3: "tool_calls", 4: "length", 5: "tool_calls", 8: "stop"}

    trigger = compare(official, own)

    assert trigger == Trigger(tp=2, fp=1, fn=1, tn=1)
    assert trigger.precision == trigger.recall == trigger.f1 == pytest.approx(2 / 3)
    assert Trigger(0, 0, 0, 4).f1 == 0


def test_results_without_a_common_request_cannot_be_compared() -> None:
    with pytest.raises(ConfigurationError, match="share no data_index"):
        compare({1: "stop"}, {2: "stop"})


def test_the_summary_has_the_verifiers_names() -> None:
    def record(reason: str | None, valid: bool | None, status: str = "success") -> dict[str, Any]:
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        return {"finish_reason": reason, "tool_calls_valid": valid, "status": status, "response": {"usage": usage}}

    records = [
        record("stop", None),
        record("tool_calls", True),
        record("tool_calls", False),
        record("tool_calls", None),
        record("length", None),
        record(None, None, "failed"),
    ]

    assert summarize("kimi", records) == {
        "model": "kimi",
        "success_count": 5,
        "failure_count": 1,
        "finish_stop": 1,
        "finish_tool_calls": 3,
        "finish_others": 1,
        "finish_others_detail": {"length": 1},
        "schema_validation_error_count": 2,
        "successful_tool_call_count": 1,
        "usage": {"prompt_tokens": 12, "completion_tokens": 18, "total_tokens": 30},
    }


@pytest.mark.parametrize(
    ("text", "said"), [("{", "line 1: is no JSON"), ("\n[]\n", "line 2: is no JSON object"), (None, "cannot be read")]
)
def test_a_bad_file_is_named_with_its_line(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        read_lines(file)


def test_results_without_an_index_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "official.jsonl"
    file.write_text('{"finish_reason": "stop"}\n')
    with pytest.raises(ConfigurationError, match="data_index"):
        read_reasons(file)


REPLY = json.dumps({"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode()


class Answering:
    """Answers each request after a moment; `asked` counts them."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, peer: Peer) -> None:
        while True:
            await peer.read_request()
            self.asked += 1
            await asyncio.sleep(0.05)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(REPLY)}\r\n\r\n"
            await peer.send(head.encode() + REPLY)


def plan(folder: Path, requests: int, *, incremental: bool = False) -> VendorPlan:
    lines = [json.dumps({"messages": [{"role": "user", "content": f"{number}"}]}) for number in range(requests)]
    (folder / "requests.jsonl").write_text("\n".join(lines))
    files = {name: folder / f"{name}.jsonl" for name in ("requests", "output", "summary")}
    return VendorPlan(**files, incremental=incremental)


@pytest.mark.anyio
async def test_old_results_are_never_cut_before_the_new_ones_are_written(tmp_path: Path) -> None:
    server = Answering()
    async with serving(server) as at, UpstreamClient(f"{at.url}/v1") as client:
        endpoint = Endpoint(client, Access(model="m", concurrency=2))
        await VendorRun(endpoint, plan(tmp_path, 3)).run(Selection(), lambda: None)
        output, kept = tmp_path / "output.jsonl", tmp_path / "kept.jsonl"
        os.link(output, kept)  # the same file, which nobody may open for writing now
        before = kept.read_text()
        await VendorRun(endpoint, plan(tmp_path, 5, incremental=True)).run(Selection(), lambda: None)
    assert server.asked == 5
    assert kept.read_text() == before
    assert output.read_text().startswith(before)
    assert [record["data_index"] for _, record in read_lines(output)] == [1, 2, 3, 4, 5]
    assert sorted(os.listdir(tmp_path)) == [
        "kept.jsonl",
        "output.jsonl",
        "requests.jsonl",
        "summary.jsonl",
    ]


@pytest.mark.anyio
async def test_results_are_there_as_they_come_and_nothing_runs_on_after_a_failure(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def done() -> None:
        if len(read_lines(tmp_path / "output.jsonl")) == 3:
            raise Enough

    server = Answering()
    with nothing_left():
        async with serving(server) as at, UpstreamClient(f"{at.url}/v1") as client:
            run = VendorRun(Endpoint(client, Access(model="m", concurrency=2)), plan(tmp_path, 40))
            others = asyncio.all_tasks()
            with pytest.raises(Enough):
                await run.run(Selection(), done)
            asked = server.asked
            assert not [task for task in asyncio.all_tasks() - others if "work" in repr(task.get_coro())]
            await asyncio.sleep(0.2)
            assert server.asked <= asked + 1
    assert asked < 10


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    async def run() -> None:
        async with UpstreamClient("http://127.0.0.1:9/v1") as client:
            given = plan(tmp_path, 1)
            null = VendorPlan(requests=given.requests, output=given.output, summary=Path("/dev/null"))
            await VendorRun(Endpoint(client, Access(model="m", retries=0)), null).run(Selection(), lambda: None)

    asyncio.run(run())
    assert Path("/dev/null").is_char_device()
