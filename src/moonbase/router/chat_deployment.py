"""An upstream that speaks chat itself: conversations are passed on, its answers read as events."""

import asyncio
import contextlib
import logging
import math
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec import Struct

from moonbase.catalog.model import Capabilities
from moonbase.chat.request import ChatRequest, Conversation, Sampling, SamplingOptions, Thinking, ToolCall
from moonbase.config import EngineSettings
from moonbase.dialects.openai.client.answer import AnswerReader, Bounds
from moonbase.dialects.openai.client.models import UpstreamModel, decode_models
from moonbase.dialects.openai.client.request import LimitName, Upstream, Wording, encode_chat, encode_wording
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.errors import ApiError, EngineUnavailable, InvalidRequest, UpstreamFailed
from moonbase.formats.calls import number_calls, own_number
from moonbase.router.chat_stream import ChatStream
from moonbase.router.deployment import Deployment
from moonbase.router.encoding import ConversationEncoder

log = logging.getLogger(__name__)

_FIRST_LOOK = 2.0  # seconds that a start waits for an upstream that may be there
_LOOK_TIMEOUT = 5.0
_LOOK_AGAIN = 30.0  # seconds between two looks at an upstream that is ready
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0  # seconds between two looks at one that is not
_MAX_CONNECTIONS = 10_000  # the upstream limits what it takes at once, not we
_MAX_SENTENCE = 2_000  # characters of a foreign sentence that a client is shown
_MAX_MODELS = 8 * 1024 * 1024  # bytes of a list of models
_UP = (200, 404, 405, 429)  # answers to /models of a server that is there, if only without such a list

_BYTES_PER_TOKEN = 4
_IMAGE_TOKENS = 1024  # moonshot-api.md 1.3, the flat count
_MOST_ADDED = 65_536  # tokens that an upstream may add to a prompt: its template, instructions of its own
_MOST_IMAGE_TOKENS = 16_384
_MANY_MESSAGES = 2_000  # encoding and numbering as many takes some milliseconds
_HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}


class Target(Struct, frozen=True, kw_only=True):
    """What is at the other end.

    `url` goes up to the version, as `https://api.moonshot.ai/v1`. `model` is the model's id there; empty passes on the
    id that the client asked for. A model that `switches` stands in for another and is told whether that one would
    think. `patience` is in seconds and no shorter than any time limit of an answer.
    """

    upstream: Upstream
    url: str
    api_key: str | None = None
    model: str = ""
    switches: bool = False
    patience: float = 7200.0

    @property
    def streams_always(self) -> bool:
        """Whether answers are asked for as streams whatever the client asked for (decision 0016)."""
        return self.upstream == "moonshot"

    def hide(self, text: str) -> str:
        """`text` without the key and the address, which no client may see."""
        address = urlsplit(self.url)
        dotted = address.hostname if address.hostname and re.search(r"[.:]", address.hostname) else None
        for secret in (self.api_key, self.url, address.netloc, dotted):
            if secret:
                text = text.replace(secret, "…")
        return text


class ChatDeployment:
    """A `Deployment` over one URL. The upstream decides what it enforces; what comes is checked, and passed on.

    An upstream that is not there yet is looked for until `close`: `/models` says whether it is, and what the model's
    window and abilities are.
    """

    enforces = False
    renders = False

    def __init__(
        self, name: str, target: Target, limits: EngineSettings, encoder: ConversationEncoder | None = None
    ) -> None:
        """Without an `encoder` a prompt is taken to be a token for four bytes.

        Raises `ConfigurationError` for a URL or key that cannot be used.
        """
        self.name = name
        self.limits = limits
        self.capabilities = Capabilities(tools=True)
        self.own_window: int | None = None
        self.ready = False
        self._target = target
        self._limit_name = limit_name(target.url)
        self._client = UpstreamClient(
            target.url,
            headers={"Authorization": f"Bearer {target.api_key}"} if target.api_key else {},
            limits=UpstreamLimits(
                first_byte_timeout=target.patience, idle_timeout=target.patience, max_connections=_MAX_CONNECTIONS
            ),
        )
        self._encoder = encoder
        self._streams: set[ChatStream] = set()
        self._heard_at = -math.inf  # of the latest output of a stream that was left
        self._exits = contextlib.AsyncExitStack()
        self._monitor: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._looked = asyncio.Event()
        self._problem = ""

    @property
    def estimates(self) -> bool:
        """Whether the tokens of prompts are estimates."""
        return self._encoder is None

    @property
    def running(self) -> int:
        return sum([stream.choices for stream in self._streams if stream.silent or stream.last_put is not None])

    @property
    def waiting(self) -> int:
        return sum([stream.choices for stream in self._streams if not stream.silent and stream.last_put is None])

    async def start(self) -> None:
        """Look for the upstream, and go on when it is not there."""
        await self._exits.enter_async_context(self._client)
        self._monitor = asyncio.create_task(self._keep_looking())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK):
                await self._looked.wait()

    async def close(self) -> None:
        self.ready = False
        if self._monitor is not None:
            self._monitor.cancel()
            await asyncio.gather(self._monitor, return_exceptions=True)
            self._monitor = None
        for stream in list(self._streams):
            stream.abort(EngineUnavailable())
        await self._exits.aclose()

    async def prepare(self, request: ChatRequest, conversation: Conversation, scope: str) -> "PreparedMessages":
        if len(request.messages) > _MANY_MESSAGES:
            wording, next_call = await asyncio.to_thread(_worded, request)
        else:
            wording, next_call = _worded(request)
        if self._encoder is not None:
            tokens = len(await self._encoder.encode(conversation, scope))
        else:
            tokens = wording.text_bytes // _BYTES_PER_TOKEN + 1
        tokens += wording.images * _IMAGE_TOKENS
        if self.estimates and self.own_window is not None:  # only the upstream can say that a prompt is too long
            tokens = min(tokens, self.own_window - 1)
        return PreparedMessages(self, request, conversation, wording, tokens, next_call)

    def open(self, prepared: "PreparedMessages", sampling: Sampling, max_tokens: int) -> ChatStream:
        """Send the request."""
        request, target = prepared.request, self._target
        limit = self._limit(prepared, max_tokens)
        streams = request.stream or target.streams_always
        body = encode_chat(
            request,
            prepared.wording,
            upstream=target.upstream,
            model=target.model or request.model,
            sampling=self._sampling(request, sampling),
            max_tokens=limit,
            thinking=self._thinking(request, prepared.conversation),
            stream=streams,
            limit_name=self._limit_name,
        )
        passed_on = None if target.model else request.model
        most = self._most(prepared.wording, limit)
        reader = AnswerReader(
            sampling.n,
            prepared.tokens,
            CallIds(prepared.next_call),
            most,
            tools=tuple([tool.name for tool in request.tools]),
            passed_on=passed_on,
        )
        stream = ChatStream(
            *(reader, sampling.n, most.output * sampling.n, passed_on, self._told, self._left), silent=not streams
        )
        stream.exchange = self._client.stream("POST", "/chat/completions", _HEADERS, body, stream)
        self._streams.add(stream)
        return stream

    def _sampling(self, request: ChatRequest, resolved: Sampling) -> SamplingOptions:
        """Defaults filled in, except where a model of the service's stands in for another: it has its own."""
        if self._target.upstream == "moonshot" and self._target.model not in ("", request.model):
            return request.sampling
        return SamplingOptions(
            temperature=resolved.temperature,
            top_p=resolved.top_p,
            n=resolved.n,
            presence_penalty=resolved.presence_penalty,
            frequency_penalty=resolved.frequency_penalty,
        )

    def _thinking(self, request: ChatRequest, conversation: Conversation) -> Thinking | None:
        """What the client wished; a model that stands in for another thinks when that one would."""
        if not self._target.switches:
            return request.thinking
        return Thinking(conversation.thinking, request.thinking is not None and request.thinking.keep)

    def _limit(self, prepared: "PreparedMessages", max_tokens: int) -> int | None:
        """Where the prompt is estimated: the client's own limit as it is, and none that its window may not have."""
        if not self.estimates:
            return max_tokens
        if prepared.request.max_tokens is not None:
            return prepared.request.max_tokens
        fits = self.own_window is None or prepared.tokens + max_tokens < self.own_window
        return max_tokens if fits else None

    def _most(self, wording: Wording, limit: int | None) -> Bounds:
        """What an upstream can count, and send. A prompt for which no window is known has no more tokens than bytes."""
        window = self.own_window
        if window is None:
            window = wording.text_bytes + wording.images * _MOST_IMAGE_TOKENS + _MOST_ADDED
            return Bounds(prompt=window, output=limit if limit is not None else window)
        return Bounds(prompt=window, output=window if limit is None else min(limit, window))

    def _left(self, stream: ChatStream) -> None:
        self._streams.discard(stream)
        if stream.last_put is not None:
            self._heard_at = stream.last_put
        if stream.unbelieved:
            names = " and ".join(stream.unbelieved)
            log.warning("%s: the upstream counted more %s than there can be; an estimate counts", self.name, names)

    def _told(self, error: ApiError) -> ApiError:
        """What a client is told: nothing of our account there, nor where it is. The log knows why."""
        cause = error.__cause__
        if isinstance(error, InvalidRequest):
            shown = self._target.hide(str(error))[:_MAX_SENTENCE]  # cut last: half a key would not be found
            return error if shown == str(error) else InvalidRequest(shown, prefix=False)
        if isinstance(cause, UpstreamFailed):
            log.warning("%s: the upstream %s", self.name, cause.reason)
        if isinstance(error, EngineUnavailable):
            self._look.set()
        return error

    async def _keep_looking(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            self._look.clear()
            problem = await self._problem_now()
            if problem and problem != self._problem:
                log.warning("%s: the upstream %s", self.name, problem)
            elif self._problem and not problem:
                log.info("%s: the upstream answers", self.name)
            self._problem = problem
            self.ready = not problem
            self._looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN if self.ready else pause):
                    await self._look.wait()  # what asked for a look while there was one gets another
                    await asyncio.sleep(_FIRST_PAUSE)
            pause = _FIRST_PAUSE if self.ready else min(pause * 2, _LONGEST_PAUSE)

    async def _problem_now(self) -> str:
        """Why requests would fail now; empty when they would not."""
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT), self._client.request("GET", "/models") as response:
                if response.status == 200:
                    with contextlib.suppress(UpstreamFailed):  # too long, or broken off: only facts are lost
                        self._learn(decode_models(await response.body(_MAX_MODELS)))
                up = response.status in _UP or (response.status >= 500 and self._hears())
                return "" if up else f"answers {response.status} to /models"
        except UpstreamFailed as error:
            return error.reason
        except TimeoutError:
            return "" if self._hears() else "does not answer"
        except Exception:  # a bug; the task must live on, or what was seen last would count for ever
            log.exception("%s: the upstream cannot be looked at", self.name)
            return "cannot be looked at"

    def _hears(self) -> bool:
        """Whether output has come lately: who is busy with it may be slow to answer anything else."""
        latest = [stream.last_put for stream in self._streams if stream.last_put is not None]
        return time.monotonic() - max([self._heard_at, *latest]) < _LOOK_AGAIN

    def _learn(self, models: tuple[UpstreamModel, ...]) -> None:
        """The window of the model that answers, when it is one; abilities that any of those that answer has."""
        wanted = self._target.model
        serving = [model for model in models if not wanted or model.id == wanted]
        self.own_window = serving[0].window if wanted and serving else None
        self.capabilities = Capabilities(
            image_in=any(model.image_in for model in serving),
            video_in=any(model.video_in for model in serving),
            reasoning=any(model.reasoning for model in serving),
            tools=True,
        )


def limit_name(url: str) -> LimitName:
    """Every server knows the older name, but for OpenAI's own: its newer models refuse it."""
    return "max_completion_tokens" if urlsplit(url).hostname == "api.openai.com" else "max_tokens"


def _worded(request: ChatRequest) -> tuple[Wording, int]:
    """The conversation for the upstream, and the number of its next call."""
    return encode_wording(request), number_calls(request.messages).next


class PreparedMessages:
    """An encoded conversation. `tokens` is counted or estimated here; the upstream's own count is what is billed."""

    __slots__ = ("_deployment", "conversation", "next_call", "request", "tokens", "wording")

    def __init__(
        self,
        deployment: ChatDeployment,
        request: ChatRequest,
        conversation: Conversation,
        wording: Wording,
        tokens: int,
        next_call: int,
    ) -> None:
        self._deployment = deployment
        self.request = request
        self.conversation = conversation
        self.wording = wording
        self.tokens = tokens
        self.next_call = next_call

    @property
    def estimated(self) -> bool:
        return self._deployment.estimates

    def open(self, request_id: str, *, sampling: Sampling, max_tokens: int) -> ChatStream:
        return self._deployment.open(self, sampling, max_tokens)


class CallIds:
    """The ids that clients see, whatever form the upstream's have: `name:number` (moonshot-api.md 1.5).

    An upstream's number is kept when it is one that the conversation has not had; other ids are replaced by the next
    number. The upstream need not know them again: it keeps nothing, and finds calls and results in the next request
    under the ids that the client sends, which agree among themselves.
    """

    def __init__(self, first: int) -> None:
        """`first` is the number of the next call of the conversation."""
        self._first = first
        self._next: dict[int, int] = {}

    def __call__(self, choice: int, given: str, name: str) -> str:
        least = self._next.get(choice, self._first)
        own = own_number(ToolCall(given, name, ""))
        number = own if own is not None and own >= least else least
        self._next[choice] = number + 1
        return f"{name}:{number}"


if TYPE_CHECKING:

    def _conforms(deployment: ChatDeployment) -> Deployment:
        return deployment
