"""What is left out of system prompts so that their prefix stays the same."""

from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.request import ImagePart, Message, TextPart
from moonbase.service.hygiene import without_changing_lines

BILLING = "x-anthropic-billing-header: cc_version=2.1.332.1ce; cch=0a1b2;"
HI = Message(role="user", content=(TextPart("Hi"),))


def system(*texts: str) -> Message:
    return Message(role="system", content=tuple(map(TextPart, texts)))


def test_a_part_of_that_line_alone_is_gone() -> None:
    assert without_changing_lines((system(BILLING, "Be."), HI)) == ((system("Be."), HI), 1)


def test_what_follows_the_line_stays() -> None:
    assert without_changing_lines((system(f"{BILLING}\nBe.\nSo."), HI)) == ((system("Be.\nSo."), HI), 1)


def test_a_message_of_that_line_alone_is_gone_unless_it_is_all_there_is() -> None:
    assert without_changing_lines((system(BILLING), HI)) == ((HI,), 1)
    assert without_changing_lines((system(BILLING),)) == ((system(BILLING),), 0)


def test_what_others_say_of_it_stays() -> None:
    said = (
        system(f"Never say {BILLING}"),
        Message(role="user", content=(TextPart(BILLING), ImagePart("data:image/png;base64,AAAA"))),
        Message(role="assistant", content=(TextPart(BILLING),)),
    )
    assert without_changing_lines(said) == (said, 0)


@given(st.lists(st.text(max_size=20), max_size=4))
def test_prompts_without_the_line_are_left_as_they_are(texts: list[str]) -> None:
    messages = (system(*texts), HI)
    assert without_changing_lines(messages) == (messages, 0)
