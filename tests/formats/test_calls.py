"""Numbers of calls over a conversation, and which results belong to which calls."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.request import Message, TextPart, ToolCall
from moonbase.errors import InvalidRequest
from moonbase.formats.calls import number_calls

USER = Message(role="user", content=(TextPart("Hi"),))
SYSTEM = Message(role="system", content=(TextPart("Be."),))
MISSING = (
    "Invalid request: an assistant message with 'tool_calls' must be followed by tool messages responding to each "
    "'tool_call_id'. The following tool_call_ids did not have response messages: "
)


def calling(*ids: str, name: str = "get") -> Message:
    return Message(role="assistant", tool_calls=tuple([ToolCall(call, name, "{}") for call in ids]))


def result(call: str | None) -> Message:
    return Message(role="tool", tool_call_id=call, content=(TextPart("1"),))


def loop(*ids: str, name: str = "get") -> tuple[Message, ...]:
    return (calling(*ids, name=name), *[result(call) for call in ids])


def numbered(*messages: Message) -> tuple[list[str], int]:
    """The ids of all calls in order, and the number that comes next."""
    numbers = number_calls(messages)
    made = [numbers.ids[at] for at, message in enumerate(messages) if message.tool_calls]
    return [call for turn in made for call in turn], numbers.next


def test_a_conversation_without_calls_begins_at_0() -> None:
    assert numbered(USER) == ([], 0)


@pytest.mark.parametrize(
    ("ids", "numbers", "following"),
    [
        (("call_a", "call_b"), ["get:0", "get:1"], 2),
        (("get:0", "get:1"), ["get:0", "get:1"], 2),
        (("functions.get:0", "functions.get:1"), ["get:0", "get:1"], 2),
        (("get:0", "functions.get:4"), ["get:0", "get:4"], 5),
        (("get:73", "get:75"), ["get:73", "get:75"], 76),
        (("get:1", "get:0"), ["get:0", "get:1"], 2),
        (("get:0", "functions.get:0"), ["get:0", "get:1"], 2),
        (("get:7", "call_b"), ["get:0", "get:1"], 2),
        (("get:07", "get:8"), ["get:0", "get:1"], 2),
        (("get:-1", "get:8"), ["get:0", "get:1"], 2),
        (("get:٣", "get:8"), ["get:0", "get:1"], 2),
        (("get:999999", "get:x"), ["get:0", "get:1"], 2),
        (("get:1000000", "get:1000001"), ["get:0", "get:1"], 2),
        (("put:3", "get:4"), ["get:0", "get:1"], 2),
        ((":3", "3"), ["get:0", "get:1"], 2),
        (("functions.functions.get:3", "get:4"), ["get:0", "get:1"], 2),
    ],
)
def test_numbers_are_kept_only_when_all_ids_are_ours_and_rise(
    ids: tuple[str, ...], numbers: list[str], following: int
) -> None:
    assert numbered(USER, *loop(*ids)) == (numbers, following)
    apart = [message for call in ids for message in loop(call)]
    assert numbered(USER, *apart) == (numbers, following)


def test_names_with_colons_and_dots_keep_their_numbers() -> None:
    turns = (*loop("a:b.c:0", name="a:b.c"), *loop("functions.a:b.c:1", name="a:b.c"))
    assert numbered(USER, *turns) == (["a:b.c:0", "a:b.c:1"], 2)


def test_one_foreign_id_anywhere_renumbers_all() -> None:
    turns = (*loop("get:5"), USER, *loop("call_x"), USER, *loop("get:9"))
    assert numbered(USER, *turns) == (["get:0", "get:1", "get:2"], 3)


def test_results_are_told_which_call_they_answer_in_whatever_order_they_come() -> None:
    messages = (USER, calling("x", "y", "z"), result("z"), result("x"), SYSTEM, result("y"), USER)
    ids = (("get:0", "get:1", "get:2"), ("get:2",), ("get:0",), (), ("get:1",), ())
    assert number_calls(messages).ids == ((), *ids)


def test_ids_may_come_back_in_later_turns() -> None:
    """Clients and models count anew in every turn; a result belongs to the turn before it."""
    messages = (USER, calling("x"), result("x"), calling("x"), result("x"))
    assert number_calls(messages).ids == ((), ("get:0",), ("get:0",), ("get:1",), ("get:1",))


@pytest.mark.parametrize("call", ["nobody", "", None])
@pytest.mark.parametrize("before", [(USER,), (USER, *loop("x")), (USER, calling("x"))])
def test_a_result_without_a_call_is_refused(call: str | None, before: tuple[Message, ...]) -> None:
    with pytest.raises(InvalidRequest) as error:
        number_calls((*before, result(call)))
    assert str(error.value) == f"Invalid request: tool_call_id {call or ''} is not found"


def test_a_call_is_answered_once() -> None:
    with pytest.raises(InvalidRequest, match="tool_call_id x is not found"):
        number_calls((USER, *loop("x"), result("x")))


@pytest.mark.parametrize(
    ("messages", "missing"),
    [
        ((calling("read_file:180"),), "read_file:180"),
        ((calling("read_file:180"), USER), "read_file:180"),
        ((calling("a", "b", "c"), result("b"), USER), "a, c"),
        ((calling("a"), SYSTEM, USER, result("a")), "a"),
        ((calling("a"), calling("b"), result("b")), "a"),
        ((calling("a"), Message(role="assistant", content=(TextPart("x"),), partial=True)), "a"),
    ],
)
def test_a_call_without_a_result_before_the_next_turn_is_refused(messages: tuple[Message, ...], missing: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        number_calls((USER, *messages))
    assert str(error.value) == MISSING + missing


def test_an_id_twice_in_one_turn_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="tool_call_id a is duplicated"):
        number_calls((USER, calling("a", "b", "a"), result("a"), result("b")))


IDS = st.sampled_from(["call_a", "call_b", "get:0", "get:3", "functions.get:4", "get:7", "x:1", "functions.get:2"])


@given(
    st.lists(st.lists(IDS, min_size=1, max_size=3, unique=True), max_size=4), st.lists(st.integers(1, 3), max_size=5)
)
def test_what_was_numbered_keeps_its_numbers_when_our_ids_come_back(
    history: list[list[str]], answers: list[int]
) -> None:
    """A client adds to its history the ids it got from us; the prompt of each turn begins with that of the last."""
    messages: tuple[Message, ...] = (USER, *[message for ids in history for message in loop(*ids)])
    for calls in answers:
        before = number_calls(messages)
        messages += loop(*[f"get:{before.next + index}" for index in range(calls)])
        after = number_calls(messages)
        assert after.ids[: len(before.ids)] == before.ids
        assert after.ids[len(before.ids)] == tuple([f"get:{before.next + index}" for index in range(calls)])
        assert after.next == before.next + calls


@given(st.lists(st.lists(IDS, min_size=1, max_size=3, unique=True), max_size=5))
def test_numbers_rise_over_the_conversation(history: list[list[str]]) -> None:
    ids, following = numbered(USER, *[message for turn in history for message in loop(*turn)])
    numbers = [int(call.rpartition(":")[2]) for call in ids]
    assert numbers == sorted(set(numbers))
    assert following == (numbers[-1] + 1 if numbers else 0)


def test_the_work_grows_with_the_conversation_only() -> None:
    """Ten thousand calls, in one turn or in many, are numbered in well under a second."""
    ids = [f"call_{index}" for index in range(10_000)]
    one, many = (USER, *loop(*ids)), (USER, *[message for call in ids for message in loop(call)])
    started = time.perf_counter()
    assert number_calls(one).next == number_calls(many).next == 10_000
    assert time.perf_counter() - started < 1
