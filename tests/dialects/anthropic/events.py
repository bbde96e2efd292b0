"""A strict reader of the Messages API's streams: the grammar of moonshot-api.md 8.3, and what a client makes of it."""

import json
from typing import Any

STARTS = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
DELTAS = {
    "text": {"text_delta": "text"},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
    "tool_use": {"input_json_delta": "partial_json"},
}


def frames(data: bytes) -> list[dict[str, Any]]:
    """The data of each event, whose name it repeats as its type."""
    assert data.endswith(b"\n\n")
    found: list[dict[str, Any]] = []
    for frame in data[:-2].split(b"\n\n"):
        event, payload = frame.split(b"\n")
        assert event.startswith(b"event: ")
        assert payload.startswith(b"data: {")
        found.append(json.loads(payload[6:]))
        assert found[-1]["type"] == event[7:].decode()
    return found


def message(data: bytes) -> dict[str, Any]:
    """The message that a whole stream tells of, as an SDK puts it together. Holds every frame to the grammar."""
    events = [event for event in frames(data) if event["type"] != "ping"]
    first, *body, last = events
    assert first["type"] == "message_start"
    assert last == {"type": "message_stop"}
    found: dict[str, Any] = first["message"]
    assert (found["content"], found["stop_reason"], found["stop_sequence"]) == ([], None, None)
    block: dict[str, Any] | None = None
    ended = False
    arguments: list[str] = []
    for event in body:
        assert not ended
        match event["type"]:
            case "content_block_start":
                assert block is None, "one block is open at a time"
                assert event["index"] == len(found["content"])
                block = event["content_block"]
                if block["type"] == "tool_use":
                    assert block.keys() == {"type", "id", "name", "input"}
                    assert block["input"] == {}
                    arguments = []
                else:
                    assert block == STARTS[block["type"]]
            case "content_block_delta":
                assert block is not None
                assert event["index"] == len(found["content"])
                delta = event["delta"]
                field = DELTAS[block["type"]][delta["type"]]
                assert delta.keys() == {"type", field}
                if field == "partial_json":
                    arguments.append(delta[field])
                else:
                    assert not block.get("signature"), "a signature comes right before the end"
                    block[field] += delta[field]
            case "content_block_stop":
                assert block is not None
                assert event == {"type": "content_block_stop", "index": len(found["content"])}
                if block["type"] == "tool_use":
                    block["arguments"] = "".join(arguments)
                found["content"].append(block)
                block = None
            case "message_delta":
                assert block is None
                assert event.keys() == {"type", "delta", "usage"}
                found |= event["delta"]
                found["usage"] = event["usage"]
                ended = True
            case other:
                raise AssertionError(f"an event {other} in the middle")
    assert ended
    return found
