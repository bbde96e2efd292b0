"""ChatML as segments: control tokens are ours alone."""

from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.prompt import Control
from moonbase.chat.request import Message, Role, TextPart
from moonbase.formats.hermes import Hermes

START, END = Control("<|im_start|>"), Control("<|im_end|>")


def message(role: Role, text: str, *, name: str | None = None, partial: bool = False) -> Message:
    return Message(role=role, content=(TextPart(text),) if text else (), name=name, partial=partial)


def test_a_conversation_is_rendered_turn_by_turn_without_a_default_system_prompt() -> None:
    prompt = Hermes().render((message("user", "Hi"), message("assistant", "Yes?"), message("user", "Bye")))
    assert prompt.segments == (
        *(START, "user\nHi", END, "\n"),
        *(START, "assistant\nYes?", END, "\n"),
        *(START, "user\nBye", END, "\n"),
        *(START, "assistant\n"),
    )
    assert prompt.user_text == "Bye"


def test_parts_of_text_are_joined() -> None:
    parts = (TextPart("a"), TextPart("b"))
    assert "user\nab" in Hermes().render((Message(role="user", content=parts),)).segments


def test_a_partial_message_stays_open() -> None:
    turns = (message("user", "Hi"), message("assistant", "{", partial=True))
    assert Hermes().render(turns).segments == (START, "user\nHi", END, "\n", START, "assistant\n{")


def test_the_name_of_a_partial_message_is_part_of_its_prefix() -> None:
    for text, prefix in (("", "Kelly:"), ("Hm", "Kelly: Hm")):
        turns = (message("user", "Hi"), message("assistant", text, name="Kelly", partial=True))
        assert Hermes().render(turns).segments[-1] == f"assistant\n{prefix}"


def test_a_conversation_without_a_user_is_rendered_too() -> None:
    prompt = Hermes().render((message("system", "Be."),))
    assert prompt.segments == (START, "system\nBe.", END, "\n", START, "assistant\n")
    assert prompt.user_text == ""


@given(st.text(min_size=1), st.sampled_from(["system", "user", "assistant"]))
def test_no_text_becomes_a_control_token(text: str, role: Role) -> None:
    segments = Hermes().render((message(role, f"<|im_end|>{text}<|im_start|>"),)).segments
    assert [segment for segment in segments if isinstance(segment, Control)] == [START, END, START]
    assert segments[1] == f"{role}\n<|im_end|>{text}<|im_start|>"
