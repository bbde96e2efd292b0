"""Checks of streams: what each chunk holds, and their order (moonshot-api.md 3)."""

from collections.abc import Iterator

from moonbase.verify.answers import Answer, Json, items, mapping
from moonbase.verify.chat_checks import usage_problems
from moonbase.verify.probe import Probe
from moonbase.verify.report import Findings


async def frames(probe: Probe, found: Findings) -> None:
    for label, answer in await probe.streams():
        if answer.status != 200:
            found.fail(f"{label}: {answer.failure}")
            continue
        if not answer.content_type.startswith("text/event-stream"):
            found.fail(f"{label}: the content type is {answer.content_type!r}")
        if answer.failure is not None:
            continue  # told by the check of what was asked
        if not answer.done:
            found.fail(f"{label}: no [DONE] at the end")
        for problem in _chunk_problems(answer.chunks):
            found.fail(f"{label}: {problem}")


def _chunk_problems(chunks: tuple[object, ...]) -> Iterator[str]:
    if not chunks:
        yield "there are no chunks"
    for name in ("id", "created", "model"):
        values = {repr(mapping(chunk).get(name)) for chunk in chunks}
        if len(values) > 1 or values == {"None"}:
            yield f"`{name}` is {' and '.join(sorted(values)[:3])}"
    for chunk in chunks:
        if mapping(chunk).get("object") != "chat.completion.chunk" or not isinstance(
            mapping(chunk).get("choices"), list
        ):
            yield f"a chunk without the object's name or choices: {str(chunk)[:80]}"


async def role(probe: Probe, found: Findings) -> None:
    for label, answer in await _sound(probe, found):
        for index, choice_chunks in _by_choice(answer).items():
            roles = [mapping(chunk.get("delta")).get("role") for chunk in choice_chunks]
            if roles[0] != "assistant":
                found.fail(f"{label}: the first chunk of choice {index} has the role {roles[0]!r}")
            if any(given is not None for given in roles[1:]):
                found.fail(f"{label}: choice {index} has a role in a later chunk")


async def finish(probe: Probe, found: Findings) -> None:
    for label, answer in await _sound(probe, found):
        for index, choice_chunks in _by_choice(answer).items():
            reasons = [chunk.get("finish_reason") for chunk in choice_chunks]
            if reasons[-1] is None or any(reason is not None for reason in reasons[:-1]):
                found.fail(
                    f"{label}: the finish reasons of choice {index} are {[r for r in reasons if r]}, not one last"
                )


async def usage(probe: Probe, found: Findings) -> None:
    for label, answer in await _sound(probe, found):
        for index, choice_chunks in _by_choice(answer).items():
            for problem in usage_problems(choice_chunks[-1].get("usage")):
                found.fail(f"{label}: choice {index}: {problem}")
            if any(chunk.get("usage") for chunk in choice_chunks[:-1]):
                found.fail(f"{label}: choice {index} has usage before its last chunk")


async def extra_usage(probe: Probe, found: Findings) -> None:
    counted = await probe.counted_stream()
    if not counted.whole:
        found.fail(f"include_usage: {counted.failure}")
        return
    last = mapping(counted.chunks[-1] if counted.chunks else None)
    if last.get("choices") != [] or not isinstance(last.get("usage"), dict):
        found.fail("include_usage: the last chunk has no usage, or it has choices")
    elif counted.first.usage is not None and last["usage"] != counted.first.usage:
        found.fail(f"include_usage: it says {last['usage']}, the choice {counted.first.usage}")
    _, plain = (await probe.plain())[1]
    if any(mapping(chunk).get("choices") == [] for chunk in plain.chunks):
        found.fail("a chunk without choices although it was not asked for")


async def equal(probe: Probe, found: Findings) -> None:
    if not probe.greedy:
        found.skip("the temperature is fixed, so no two answers need be equal")
        return
    (_, whole), (_, streamed) = await probe.plain()
    if not whole.whole or not streamed.whole:
        found.skip("there were no two answers")
    elif whole.first.content != streamed.first.content:
        found.warn("the two texts differ; on a server that batches they may")


async def _sound(probe: Probe, found: Findings) -> list[tuple[str, Answer]]:
    """The streams that came to their end."""
    streams = [(label, answer) for label, answer in await probe.streams() if answer.whole and answer.chunks]
    if not streams:
        found.skip("no stream came to its end")
    return streams


def _by_choice(answer: Answer) -> dict[int, list[Json]]:
    chunks: dict[int, list[Json]] = {}
    for chunk in answer.chunks:
        for choice in items(mapping(chunk).get("choices")):
            index = choice.get("index")
            chunks.setdefault(index if isinstance(index, int) else 0, []).append(choice)
    return chunks
