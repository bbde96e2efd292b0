"""Response bytes of another server of this dialect to `ChatEvent`s (moonshot-api.md 2 and 3).

Servers differ in where usage sits, in how they number and name tool calls, and in what they leave out: whatever can
be understood is, everything else breaks the answer with a clear error after what was delivered.
"""

from collections.abc import Callable

from msgspec import Struct

from moonbase.chat.events import (
    ArgumentsDelta,
    ChatEvent,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallStarted,
    Usage,
)
from moonbase.dialects.openai.client.call import Call, begins_another
from moonbase.dialects.openai.client.chunk import (
    Delta,
    WireCall,
    WireChoice,
    WireFunction,
    WireUsage,
    count,
    read_chunk,
)
from moonbase.dialects.openai.client.failure import broken, reported

CallIds = Callable[[int, str, str], str]
"""The id that clients see for a call: of choice, the server's own id (may be empty) and the function's name."""

_LONG = 16  # characters that hardly a token has
_MAX_CALLS = 1_024  # of a choice, and pieces of them in a delta; requests declare no more than 128 tools


class Bounds(Struct, frozen=True, kw_only=True):
    """The most tokens that a prompt, and the output of one choice, can have: a count beyond them is not believed."""

    prompt: int
    output: int


class AnswerReader:
    """Reads one answer. Its methods add to the events they are given; what they added before they raise stands.

    A choice's `Finished` is held back until its usage is known: some servers send it later, some never. Then it is
    estimated from below: a delta is one token, or one for eight characters where it plainly holds several. So an
    answer that is left or breaks off before its usage came is billed for rather too little than too much. An estimate
    also stands in for a count that cannot be; `unbelieved` names what was counted so.

    A call starts when its name is known: some servers send it in pieces, so a name with which a longer one of `tools`
    begins may go on until there are arguments or another call begins. A name that no tool has is reported as it is. A
    call that has ended without arguments has `{}`. A choice that stopped for calls of which none came has lost them.
    """

    def __init__(
        self,
        choices: int,
        prompt_tokens: int,
        call_ids: CallIds,
        most: Bounds,
        *,
        tools: tuple[str, ...] = (),
        passed_on: str | None = None,
    ) -> None:
        """`prompt_tokens` is our own count, which holds until the server tells; `passed_on` as in `failure.refused`.

        `tools` are the names that were declared.
        """
        self.unbelieved: list[str] = []
        self.complete = False
        """Whether every choice's last event has been given."""
        self.stopped = False
        """Whether every choice has its finish_reason; only usage may be missing."""
        self._choices = [_Choice(number) for number in range(choices)]
        self._open = choices
        self._going_on = choices  # choices without a finish_reason
        self._estimate = 0  # of all choices
        self._told = False  # whether any usage has come
        self._counted = 0  # of the choices that have ended
        self.prompt_tokens = prompt_tokens
        """As the server counts them once it has told."""
        self.cached_tokens = 0
        """Never more than `prompt_tokens`."""
        self._prompt_tokens = prompt_tokens
        self._call_ids = call_ids
        self._most = most
        self._tools = tools
        self._passed_on = passed_on
        self._total: Usage | None = None  # the latest of the whole answer
        self._total_is_last = False  # whether it came when all choices had stopped

    @property
    def completion_tokens(self) -> int:
        """Of all choices: as the server counts them once it has told, an estimate before."""
        if self.complete:
            return self._counted
        if not self._told:
            return self._estimate
        counted = sum([choice.tokens for choice in self._choices])
        if self._total is None or all(choice.usage is not None for choice in self._choices):
            return counted
        return self._total.completion_tokens if self._total_is_last else max(self._total.completion_tokens, counted)

    def feed(self, data: bytes, events: list[ChatEvent]) -> None:
        """Read the data of one server-sent event. Raises the `ApiError` that it tells of or amounts to."""
        if data == b"[DONE]":
            self.end(events)
        elif data and self._open:
            self._read(data, events)

    def whole(self, body: bytes, events: list[ChatEvent]) -> None:
        """Read an answer that did not come as a stream. Raises as `feed` does."""
        self._read(body, events)
        self.end(events)

    def end(self, events: list[ChatEvent]) -> None:
        """The response is over. Raises when a choice is not."""
        if not self.stopped:
            raise broken("ended the answer before every choice had a finish_reason")
        if not self.complete:
            self._close(events)

    def _learn(self) -> None:
        """A usage has come: take from it what is of the prompt."""
        usages = [choice.usage for choice in self._choices if choice.usage is not None]
        if self._total is not None:
            usages.insert(0, self._total)
        self.prompt_tokens = usages[0].prompt_tokens
        self.cached_tokens = min(max([usage.cached_tokens for usage in usages]), self.prompt_tokens)

    def _read(self, data: bytes, events: list[ChatEvent]) -> None:
        chunk = read_chunk(data)
        if chunk.error is not None or chunk.object == "error":
            raise reported(chunk, passed_on=self._passed_on)
        for choice in chunk.choices or ():
            self._take(choice, events)
        if chunk.usage is not None:
            self._total = self._usage(chunk.usage, self._choices)
            self._learn()
            if self.stopped:
                self._total_is_last = True
                self._close(events)

    def _take(self, wire: WireChoice, events: list[ChatEvent]) -> None:
        number = wire.index or 0
        if not 0 <= number < len(self._choices):
            raise broken(f"sent choice {number} of {len(self._choices)}")
        choice = self._choices[number]
        delta = wire.delta or wire.message
        if delta is not None:
            self._take_delta(choice, delta, events)
        if wire.finish_reason or wire.usage is not None:
            self._take_end(choice, wire, events)

    def _take_end(self, choice: "_Choice", wire: WireChoice, events: list[ChatEvent]) -> None:
        if choice.finish is None and (reason := wire.finish) is not None:
            self._end_calls(choice, events, cut=reason == "length")
            choice.lost_calls = wire.called and not choice.started
            choice.finish = "tool_calls" if choice.started and reason == "stop" else reason
            self._going_on -= 1
            self.stopped = not self._going_on
        told = wire.usage.completion_tokens if wire.usage is not None else None
        if wire.usage is not None and (told or (told == 0 and wire.finish_reason)):  # else it may come yet
            choice.usage = self._usage(wire.usage, [choice])
            self._learn()
        if choice.finish is not None and choice.usage is not None and not choice.ended:
            self._end(choice, choice.usage, events)

    def _usage(self, wire: WireUsage, choices: "list[_Choice]") -> Usage:
        """In our terms, for these choices. Our own counts serve where there are none; no part exceeds its whole."""
        self._told = True
        prompt, cached = count(wire.prompt_tokens), wire.cached
        if prompt > self._most.prompt:
            self._doubt("prompt_tokens")
            prompt = cached = 0
        completion, thought = count(wire.completion_tokens), wire.thought
        impossible = completion > self._most.output * len(choices)
        if impossible:
            self._doubt("completion_tokens")
        if impossible or not completion:  # a count of 0 for output that came is no count
            completion = sum([choice.estimate for choice in choices])
            thought = sum([choice.reasoning_estimate for choice in choices])
        prompt = prompt or self._prompt_tokens
        return Usage(prompt, completion, min(cached, prompt), min(thought, completion))

    def _doubt(self, name: str) -> None:
        if name not in self.unbelieved:
            self.unbelieved.append(name)

    def _take_delta(self, choice: "_Choice", delta: Delta, events: list[ChatEvent]) -> None:
        if choice.finish is not None:
            if choice.goes_on(delta):
                raise broken("went on after the finish_reason of a choice")
            return
        if thought := delta.reasoning_content or delta.reasoning:
            events.append(ReasoningDelta(choice.number, thought))
            choice.reasoning_estimate += self._estimated(choice, thought)
        content = delta.content
        if text := content if content and isinstance(content, str) else delta.text:
            events.append(TextDelta(choice.number, text))
            if len(text) <= _LONG:  # as `_estimated` does, without the call
                choice.estimate += 1
                self._estimate += 1
            else:
                self._estimated(choice, text)
        if calls := delta.tool_calls:
            if len(calls) > _MAX_CALLS:
                raise broken(f"sent more than {_MAX_CALLS} pieces of tool calls at once")
            for call in calls:
                self._take_call(choice, call, events)

    def _estimated(self, choice: "_Choice", text: str) -> int:
        """Count the tokens that `text` has at least."""
        tokens = 1 if len(text) <= _LONG else len(text) // 8
        choice.estimate += tokens
        self._estimate += tokens
        return tokens

    def _take_call(self, choice: "_Choice", wire: WireCall, events: list[ChatEvent]) -> None:
        function = wire.function or WireFunction()
        known = len(choice.calls)
        call = choice.call(wire, function.name or "")
        if len(choice.calls) > known:
            self._start_named(choice, events)
        arguments = function.text
        if not call.started:
            call.extend_name(function.name or "")
            if call.name and (arguments or not self._may_go_on(call.name)):
                self._start(choice, call, events)
        call.blank = call.blank and not arguments.strip()
        if call.blank or not call.started:
            call.hold(arguments)
        else:
            self._argue(choice, call, arguments, events)

    def _may_go_on(self, name: str) -> bool:
        """Whether a tool has a longer name that begins with `name`."""
        return any(tool.startswith(name) and tool != name for tool in self._tools)

    def _start_named(self, choice: "_Choice", events: list[ChatEvent]) -> None:
        """Start the calls whose names are complete because another call begins."""
        for call in choice.calls:
            if call.name and not call.started:
                self._start(choice, call, events)

    def _start(self, choice: "_Choice", call: "Call", events: list[ChatEvent]) -> None:
        call.index = choice.started
        choice.started += 1
        choice.estimate += 1
        self._estimate += 1
        outward = self._call_ids(choice.number, call.id, call.name)
        events.append(ToolCallStarted(choice.number, call.index, outward, call.name))

    def _argue(self, choice: "_Choice", call: "Call", arguments: str, events: list[ChatEvent]) -> None:
        """Give what was held of the arguments of a call that has started, and more of them."""
        if call.held:
            arguments = "".join([*call.held, arguments])
            call.held.clear()
        if arguments:
            events.append(ArgumentsDelta(choice.number, call.index, arguments))
            self._estimated(choice, arguments)

    def _end_calls(self, choice: "_Choice", events: list[ChatEvent], *, cut: bool) -> None:
        """Start what has not started, and complete what has no arguments, unless the limit `cut` the last call."""
        for call in choice.calls:
            if not call.name:
                raise broken("called a function without a name")
            if not call.started:
                self._start(choice, call, events)
            if not call.blank:
                self._argue(choice, call, "", events)
            elif not cut or call is not choice.calls[-1]:
                events.append(ArgumentsDelta(choice.number, call.index, "{}"))

    def _close(self, events: list[ChatEvent]) -> None:
        """End what is not ended. A usage of the whole answer is shared out as the estimates are."""
        if self._total is not None and self._total.completion_tokens >= self.completion_tokens:
            _share_out(self._total, self._choices)
        for choice in self._choices:
            if not choice.ended:
                estimated = Usage(self.prompt_tokens, choice.estimate, self.cached_tokens, choice.reasoning_estimate)
                self._end(choice, choice.usage or estimated, events)

    def _end(self, choice: "_Choice", usage: Usage, events: list[ChatEvent]) -> None:
        assert choice.finish is not None
        choice.usage = usage
        choice.ended = True
        self._open -= 1
        self._counted += usage.completion_tokens
        self.complete = not self._open
        events.append(Finished(choice.number, choice.finish, usage, broken_calls=int(choice.lost_calls)))


class _Choice:
    __slots__ = (
        "_by_index",
        "calls",
        "ended",
        "estimate",
        "finish",
        "lost_calls",
        "number",
        "reasoning_estimate",
        "started",
        "usage",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.estimate = 0
        self.reasoning_estimate = 0
        self.started = 0
        self.finish: FinishReason | None = None
        self.lost_calls = False
        self.usage: Usage | None = None
        self.ended = False
        self._by_index: dict[int, Call] = {}
        self.calls: list[Call] = []

    @property
    def tokens(self) -> int:
        """As the server counts them, once all have been counted."""
        if self.usage is None:
            return self.estimate
        return self.usage.completion_tokens if self.ended else max(self.usage.completion_tokens, self.estimate)

    def goes_on(self, delta: Delta) -> bool:
        """Whether there is more in it than white space, which some servers send after the end."""
        if delta.thought.strip() or delta.text.strip():
            return True
        functions = [(wire, wire.function) for wire in delta.tool_calls or () if wire.function is not None]
        return any(
            function.text.strip() or (function.name and not self.call(wire, function.name).name)
            for wire, function in functions
        )

    def call(self, wire: WireCall, name: str) -> Call:
        """The call that a delta belongs to, made when it is a new one."""
        latest = self.calls[-1] if self.calls else None
        known = latest if wire.index is None else self._by_index.get(wire.index)
        if known is None or begins_another(known, wire, name):
            if len(self.calls) == _MAX_CALLS:
                raise broken(f"made more than {_MAX_CALLS} tool calls")
            known = Call(wire.id or "")
            self.calls.append(known)
            if wire.index is not None:
                self._by_index[wire.index] = known
        elif wire.id and not known.name:
            known.id = wire.id
        return known


def _share_out(total: Usage, choices: list[_Choice]) -> None:
    """Give each choice without a usage its part of `total`, in proportion to the estimates; the last gets the rest."""
    open_choices = [choice for choice in choices if choice.usage is None]
    known = [choice.usage for choice in choices if choice.usage is not None]
    left = max(total.completion_tokens - sum([usage.completion_tokens for usage in known]), 0)
    thought_left = max(total.reasoning_tokens - sum([usage.reasoning_tokens for usage in known]), 0)
    weight = sum([choice.estimate for choice in open_choices])
    for choice in open_choices:
        last = choice is open_choices[-1]
        tokens = left if last or not weight else left * choice.estimate // weight
        thought = min(thought_left, tokens)
        choice.usage = Usage(total.prompt_tokens, tokens, total.cached_tokens, thought)
        left -= tokens
        thought_left -= thought
        weight -= choice.estimate
