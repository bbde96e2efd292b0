"""Answers of any server, put together as clients do."""

from moonbase.verify.answers import Call, error_message, streamed_choices, whole_choices


def chunk(delta: object, **choice: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta} | choice]}


def test_deltas_are_folded_as_clients_fold_them() -> None:
    (choice,) = streamed_choices(
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "hm"}),
            chunk({"content": "Hello"}),
            chunk({"tool_calls": [{"index": 0, "id": "a:0", "function": {"name": "a", "arguments": ""}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]}),
            chunk({"tool_calls": [{"index": 1, "id": "b:1", "function": {"name": "b", "arguments": "{}"}}]}),
            chunk({"tool_calls": [{"index": 0, "id": "late", "function": {"name": "A", "arguments": ": 1}"}}]}),
            chunk({}, finish_reason="tool_calls", usage={"prompt_tokens": 1}),
            {"choices": [], "usage": {"prompt_tokens": 2}},
        ]
    )

    assert (choice.content, choice.reasoning, choice.finish_reason) == ("Hello", "hm", "tool_calls")
    assert choice.calls == (Call("a:0", "A", '{"x": 1}'), Call("b:1", "b", "{}"))
    assert choice.usage == {"prompt_tokens": 1}


def test_what_has_the_wrong_shape_is_empty_not_an_error() -> None:
    for body in (None, [], "text", {}, {"choices": None}, {"choices": [1]}, {"choices": [{"message": "no"}]}):
        assert all(choice.content == "" for choice in whole_choices(body))
    for odd in (None, 1, {"choices": [{"delta": {"tool_calls": [{"index": "x", "function": None}, 7]}}]}):
        streamed_choices([odd])


def test_the_sentence_of_an_error_is_found_where_servers_put_it() -> None:
    for body in ({"error": {"message": "no"}}, {"error": "no"}, {"message": "no"}, {"detail": "no"}):
        assert error_message(body) == "no"
    assert error_message({"object": "list"}) is None
