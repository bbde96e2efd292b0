"""The format contract: a conversation to a prompt, raw output to events, and what that output may be. Pure."""

from typing import Protocol

from moonbase.chat.constraint import Constraint
from moonbase.chat.events import OutputEvent
from moonbase.chat.prompt import Prompt, Segment
from moonbase.chat.request import Conversation


class Parser(Protocol):
    """One choice's output, read as it comes. Any cutting of the output gives the same events in sum."""

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning."""
        ...

    @property
    def calls(self) -> int:
        """Tool calls reported so far."""
        ...

    @property
    def dropped(self) -> int:
        """Tool calls that were begun and never reported, so far."""
        ...

    def feed(self, segments: list[Segment]) -> list[OutputEvent]:
        """The events in the next piece: texts, and the format's markers as `Control`."""
        ...

    def flush(self, *, complete: bool) -> list[OutputEvent]:
        """What was held back, at the end of the output; `complete` when the model itself ended it."""
        ...


class Format(Protocol):
    """How one family of models is spoken with.

    `controls` are the control tokens that prompts are made of. `stop_controls` end a turn and are never output; a
    vocabulary may lack some. `markers` are the literals that its parser looks for in outputs: single tokens where the
    vocabulary has them, text where it has not.
    """

    @property
    def name(self) -> str: ...

    @property
    def controls(self) -> tuple[str, ...]: ...

    @property
    def stop_controls(self) -> tuple[str, ...]: ...

    @property
    def markers(self) -> tuple[str, ...]: ...

    @property
    def reasons(self) -> bool:
        """Whether its models can think before they answer."""
        ...

    def render(self, conversation: Conversation) -> Prompt:
        """Segments up to the point where the model continues; a partial last message stays open."""
        ...

    def parser(self, conversation: Conversation, choice: int) -> Parser:
        """A parser for one choice of the answer to `conversation`; its events carry `choice`."""
        ...

    def constraint(self, conversation: Conversation) -> Constraint | None:
        """What the answer must be, None when anything goes."""
        ...
