"""The OpenVINO worker: one plain loop on one thread.

Between two steps of the model it reads requests and cancellations and writes what the step brought,
one frame per gateway. `step()` holds the interpreter's lock, so threads would only add latency.
The supervisor starts it as `python -m moonbase.engines.openvino.worker`.
"""

import argparse
import contextlib
import functools
import logging
import os
import secrets
import selectors
import socket
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

from moonbase.chat.constraint import JsonSchema
from moonbase.engines.base import TokenIds
from moonbase.engines.grammar import Grammars
from moonbase.engines.openvino import conversion, protocol
from moonbase.engines.openvino.shadow import PrefixShadow
from moonbase.engines.structural_tag import OpenVINODialect
from moonbase.engines.supervisor import enter_worker

_log = logging.getLogger(__name__)

_STEP_TOKENS = 64  # a step that reads so much of a prompt takes 50 to 85 ms on two cores: other streams wait for it
_GREEDY_BELOW = 0.01
_LEAST_TOP_P = 1e-6  # OpenVINO refuses 0, which clients may send; this little leaves the likeliest token alone, too
_BACKLOG = 64 * 1024 * 1024  # bytes; a gateway that reads so little is given up
_RECEIVE = 1 << 20


class _Choice:
    """One choice in the pipeline, with the tokens it has so far."""

    def __init__(
        self, index: int, handle: genai.py_openvino_genai.GenerationHandle, prompt: TokenIds, cached_tokens: int
    ) -> None:
        self.index = index
        self.handle = handle
        self.tokens = array("I", prompt)
        self.cached_tokens = cached_tokens


class _Running:
    """One generation of a gateway with the choices that have not ended."""

    def __init__(self, scope: str, stop_ids: tuple[int, ...], choices: list[_Choice]) -> None:
        self.scope = scope
        self.stop_ids = stop_ids
        self.choices = choices
        self.prompt_known = False

    def cancel(self, index: int | None) -> None:
        for choice in self.choices:
            if index is None or choice.index == index:
                choice.handle.cancel()
        self.choices = [] if index is None else [choice for choice in self.choices if choice.index != index]


class _Gateway:
    """A connection, with what is to be written to it and what runs for it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.reader = protocol.FrameReader()
        self.pending = bytearray()
        self.running: dict[int, _Running] = {}


class Worker:
    """Serves one pipeline to the gateways that connect to `listener`, until standard input ends."""

    def __init__(
        self,
        pipeline: genai.ContinuousBatchingPipeline,
        listener: socket.socket,
        shadow: PrefixShadow,
        ready: protocol.Ready,
    ) -> None:
        self._pipeline = pipeline
        self._listener = listener
        self._shadow = shadow
        self._ready = ready
        self._selector = selectors.DefaultSelector()
        self._gateways: set[_Gateway] = set()
        self._requests = 0

    def run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            busy = self._pipeline.has_non_finished_requests()
            for key, events in self._selector.select(0 if busy else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is sys.stdin:
                    return
                else:
                    self._serve(key.data, events)
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                for gateway in list(self._gateways):
                    self._report(gateway)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        gateway = _Gateway(connection)
        self._gateways.add(gateway)
        self._selector.register(connection, selectors.EVENT_READ, gateway)
        self._send(gateway, self._ready)

    def _serve(self, gateway: _Gateway, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(gateway)
        if gateway not in self._gateways or not events & selectors.EVENT_READ:
            return
        try:
            data = gateway.connection.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(gateway)
            return
        for body in gateway.reader.feed(data):
            if gateway not in self._gateways:
                return  # it left while it was answered; nobody would read, nor cancel, what is started now
            match protocol.gateway_decoder.decode(body):
                case protocol.Start() as request:
                    self._start(gateway, request)
                case protocol.Cancel(generation, choice):
                    if generation in gateway.running:
                        gateway.running[generation].cancel(choice)
                        if not gateway.running[generation].choices:
                            del gateway.running[generation]

    def _start(self, gateway: _Gateway, request: protocol.Start) -> None:
        prompt = protocol.token_ids(request.prompt)
        ids = ov.Tensor(np.array(prompt, dtype=np.int64).reshape(1, -1))
        cached = self._shadow.cached(request.cache_scope, prompt)
        choices: list[_Choice] = []
        try:
            for index in range(request.sampling.n):
                self._requests += 1
                handle = self._pipeline.add_request(self._requests, ids, _generation_config(request))
                choices.append(_Choice(index, handle, prompt, cached))
        except RuntimeError as error:  # it refuses configurations that contradict themselves
            for choice in choices:
                choice.handle.cancel()
            self._send(gateway, protocol.Failed(request.generation, "refused", str(error)))
            return
        gateway.running[request.generation] = _Running(request.cache_scope, request.stop_ids, choices)

    def _report(self, gateway: _Gateway) -> None:
        """Tell a gateway what the step brought it. An empty report is a sign of life while prompts are read."""
        if not gateway.running:
            return
        outputs: list[protocol.Output] = []
        for generation, running in list(gateway.running.items()):
            for choice in list(running.choices):
                output = _output(generation, choice, running.stop_ids)
                if output is not None:
                    outputs.append(output)
                    self._remember(running, choice, output)
                elif choice.handle.get_status() == genai.GenerationStatus.IGNORED:
                    running.cancel(None)
                    self._send(gateway, protocol.Failed(generation, "overloaded", "the KV cache cannot hold it"))
                    break
            if not running.choices:
                gateway.running.pop(generation, None)  # gone already when telling of a failure lost the gateway
        self._send(gateway, protocol.Tokens(outputs))

    def _remember(self, running: _Running, choice: _Choice, output: protocol.Output) -> None:
        """Keep the shadow in step: a prompt is cached once it has been read, an answer when it is whole."""
        if not running.prompt_known:
            running.prompt_known = True
            self._shadow.record(running.scope, choice.tokens)
        choice.tokens.extend(output.token_ids)
        if output.finish is not None:
            self._shadow.record(running.scope, choice.tokens)
            running.choices.remove(choice)

    def _send(self, gateway: _Gateway, message: protocol.FromWorker) -> None:
        if gateway in self._gateways:
            gateway.pending += protocol.frame(message)
            self._flush(gateway)

    def _flush(self, gateway: _Gateway) -> None:
        try:
            while gateway.pending:
                del gateway.pending[: gateway.connection.send(gateway.pending)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(gateway)
            return
        if len(gateway.pending) > _BACKLOG:
            self._drop(gateway)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if gateway.pending else 0)
        self._selector.modify(gateway.connection, wanted, gateway)

    def _drop(self, gateway: _Gateway) -> None:
        """Forget a gateway that is gone and cancel what it had running."""
        for running in gateway.running.values():
            running.cancel(None)
        gateway.running.clear()
        self._gateways.discard(gateway)
        self._selector.unregister(gateway.connection)
        gateway.connection.close()


def _output(generation: int, choice: _Choice, stop_ids: tuple[int, ...]) -> protocol.Output | None:
    """What a choice has new, without the token that stopped it; None for nothing."""
    tokens: list[int] = []
    reason = genai.GenerationFinishReason.NONE
    while choice.handle.can_read():
        for part in choice.handle.read().values():
            tokens += part.generated_ids
            reason = part.finish_reason
    if not tokens and reason == genai.GenerationFinishReason.NONE:
        return None
    cached, choice.cached_tokens = choice.cached_tokens, 0
    match reason:
        case genai.GenerationFinishReason.STOP:
            if tokens and tokens[-1] in stop_ids:
                tokens.pop()
            return protocol.Output(generation, choice.index, tokens, "stop", cached)
        case genai.GenerationFinishReason.LENGTH:
            return protocol.Output(generation, choice.index, tokens, "length", cached)
        case _:
            return protocol.Output(generation, choice.index, tokens, None, cached)


def _generation_config(request: protocol.Start) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = request.max_tokens
    config.stop_token_ids = set(request.stop_ids)
    sampling = request.sampling
    if sampling.temperature >= _GREEDY_BELOW:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = max(sampling.top_p, _LEAST_TOP_P)
        config.rng_seed = secrets.randbits(31)
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    if request.grammar is not None:
        config.structured_output_config = genai.StructuredOutputConfig(structural_tags_config=request.grammar)
    return config


def build_pipeline(model: Path, *, threads: int, kv_blocks: int, max_running: int) -> genai.ContinuousBatchingPipeline:
    """The pipeline that a worker runs. `threads` 0 leaves their number to OpenVINO. Raises `RuntimeError`."""
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    scheduler.max_num_batched_tokens = max(_STEP_TOKENS, max_running)
    scheduler.max_num_seqs = max_running
    scheduler.num_kv_blocks = kv_blocks
    # f16 decodes faster than the default of 8 bits, for 1.7 times the memory.
    properties: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    return genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)


def _warm_up(pipeline: genai.ContinuousBatchingPipeline) -> None:
    """The first constrained request prepares the vocabulary, half a second that no client should wait."""
    config = genai.GenerationConfig()
    config.max_new_tokens = 1
    tag = Grammars(OpenVINODialect()).write(JsonSchema('{"type":"object"}')).text
    config.structured_output_config = genai.StructuredOutputConfig(structural_tags_config=tag)
    pipeline.add_request(0, ov.Tensor(np.array([[0]], dtype=np.int64)), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or OpenVINO folder")
    parser.add_argument("--cache", type=Path, help="where the model is put as it runs fastest")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--kv-blocks", type=int, required=True)
    parser.add_argument("--max-running", type=int, required=True)
    parser.add_argument("--socket", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--parent", type=int, required=True, help="process id that this must not outlive")
    options = parser.parse_args()
    enter_worker(options.parent)
    listener = socket.socket(fileno=options.socket)
    began = time.monotonic()
    try:
        pipeline = _load(options)
        _warm_up(pipeline)
    except (RuntimeError, ValueError, LookupError, MemoryError) as error:  # what its C++ exceptions become
        _refuse(listener, next(iter(str(error).splitlines()), type(error).__name__))
        sys.exit(1)
    capacity = options.kv_blocks * protocol.BLOCK
    ready = protocol.Ready(protocol.VERSION, os.getpid(), capacity, _STEP_TOKENS, time.monotonic() - began)
    Worker(pipeline, listener, PrefixShadow(options.kv_blocks, protocol.BLOCK), ready).run()


def _load(options: argparse.Namespace) -> genai.ContinuousBatchingPipeline:
    """The pipeline of the model as it runs fastest. Raises as `build_pipeline` does."""
    build = functools.partial(
        build_pipeline, threads=options.threads, kv_blocks=options.kv_blocks, max_running=options.max_running
    )
    place = options.model if options.cache is None else conversion.converted(options.model, options.cache)
    if place != options.model:
        try:
            return build(place)
        except RuntimeError as error:
            _log.warning("%s is damaged and will be made anew: %s", place, next(iter(str(error).splitlines()), ""))
            conversion.discard(place)
    return build(options.model)


def _refuse(listener: socket.socket, reason: str) -> None:
    """Tell the gateway why there is no model."""
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        connection.sendall(protocol.frame(protocol.Unloadable(reason)))


if __name__ == "__main__":
    main()
