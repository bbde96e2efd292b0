"""Frames between gateway and worker."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.request import Sampling
from moonbase.engines.openvino import protocol
from moonbase.errors import WorkerDied

START = protocol.Start(
    generation=7,
    prompt=array("I", [1, 2, 4_000_000_000]).tobytes(),
    sampling=Sampling(temperature=0.6, top_p=1.0, n=2, presence_penalty=0.0, frequency_penalty=0.0),
    max_tokens=5,
    stop_ids=(0, 2),
    grammar='{"type":"structural_tag"}',
    cache_scope="org-a",
)


def test_messages_survive_the_way() -> None:
    def body(message: protocol.FromGateway | protocol.FromWorker) -> bytes:
        (body,) = protocol.FrameReader().feed(protocol.frame(message))
        return body

    for message in (START, protocol.Cancel(7, None), protocol.Cancel(7, 1)):
        assert protocol.gateway_decoder.decode(body(message)) == message
    for told in (
        protocol.Ready(protocol.VERSION, 4711, 1024, 64, 1.5),
        protocol.Unloadable("no such file"),
        protocol.Tokens([protocol.Output(7, 0, [1, 2], None, 32), protocol.Output(7, 1, [], "stop", 0)]),
        protocol.Failed(7, "refused", "why"),
    ):
        assert protocol.worker_decoder.decode(body(told)) == told
    assert list(protocol.token_ids(START.prompt)) == [1, 2, 4_000_000_000]


@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_any_cutting_gives_the_same_frames(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join([len(body).to_bytes(4, "big") + body for body in bodies])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, found = protocol.FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == bodies


def test_a_frame_of_absurd_length_is_no_frame() -> None:
    with pytest.raises(WorkerDied, match="4294967295 bytes"):
        list(protocol.FrameReader().feed(b"\xff\xff\xff\xff"))
