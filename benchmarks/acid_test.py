"""Are tool calls valid by construction, whatever the model says?

`python -m benchmarks.acid_test ENGINE --schemas DIR --vocabulary DIR [--count 500] [--report FILE]`

ENGINE is `openvino` or `llamacpp-smollm2`, the default model; or `llamacpp` or `vllm`, Kimi K2's architecture and
vocabulary with random weights (tests/engines/tiny_k2.py), vLLM as scripts/install-vllm puts it into .venv-vllm. DIR of
`--schemas` has the MFJS cases, that of `--vocabulary` Kimi's `tiktoken.model`.

A server is started with the engine as its child, and `moonbase verify` asks it for COUNT calls each way: of a named
function, of any, and left to the model. Then answers of the same engine are recorded as it puts them out, and played
again through a server with `echo`, as a stream and in one piece: both must be what was recorded. The exit code is 1
when anything is not as it must be; `--uniform` leaves out that the random weights like to end strings.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec
from msgspec import Struct
from tests.engines import tiny_k2, tiny_k2_gguf

from benchmarks.programs import VLLM, vllm_version
from benchmarks.replay import Parts, differences, record, write_script
from benchmarks.server import Server, running
from moonbase import config
from moonbase.catalog.catalog import load_catalog
from moonbase.catalog.weights import DEFAULT_WEIGHTS, locate
from moonbase.config import EngineSettings
from moonbase.engines.base import Tokenizer
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.engines.tokenizers.model import read_tokenizer
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.formats.hermes.format import Hermes
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.router.token_deployment import single_tokens
from moonbase.verify.answers import Json
from moonbase.verify.endpoint import Access, Endpoint
from moonbase.verify.schemas import CallChoice, SchemaCase, SchemaPlan, read_cases

ENGINES = ("openvino", "llamacpp", "llamacpp-smollm2", "vllm")
CHOICES: tuple[CallChoice, ...] = ("named", "required", "auto")
MODEL = "kimi-k2-0905-preview"
MAX_TOKENS = 2000
_INVALID = "The model's output is not valid"
_ROOT = Path(__file__).parents[1]
_PACKAGES = {"openvino": "openvino-genai", "llamacpp": "xllamacpp", "llamacpp-smollm2": "xllamacpp"}


class Subject(Struct, frozen=True):
    """An engine to examine: its settings, with the model's files in place, and how its model is called.

    `calls` tells whether the model calls tools when it is left to it.
    """

    engine: str
    settings: EngineSettings
    model: str
    version: str
    calls: bool = False

    @property
    def options(self) -> list[str]:
        """The arguments with which `moonbase serve` starts it."""
        found: list[str] = []
        for field in msgspec.structs.fields(EngineSettings):
            value = getattr(self.settings, field.name)
            if value != field.default:
                text = ",".join(value) if isinstance(value, tuple) else value
                found += ["--set", f"engine.{field.encode_name}={text}"]
        return found

    def parts(self) -> Parts:
        """Format, tokenizer and engine by themselves, as the server makes them."""
        settings = self.settings
        if self.engine == "openvino":
            from moonbase.engines.openvino.engine import OpenVINOEngine

            path = default_model("openvino")
            tokenizer: Tokenizer = HuggingFaceTokenizer.read(path)
            return Parts(_hermes(tokenizer), tokenizer, OpenVINOEngine(settings, path))
        path = default_model("llamacpp") if settings.model is None else Path(settings.model)
        tokenizer = read_tokenizer(path if settings.vocabulary is None else Path(settings.vocabulary))
        format = KimiK2("kimi-k2-0905") if isinstance(tokenizer, KimiTokenizer) else _hermes(tokenizer)
        if self.engine == "vllm":
            from moonbase.engines.vllm import vllm_engine

            return Parts(format, tokenizer, vllm_engine(settings, tokenizer, path))
        from moonbase.engines.llamacpp.engine import llamacpp_engine

        return Parts(format, tokenizer, llamacpp_engine(settings, tokenizer, path))


def _hermes(tokenizer: Tokenizer) -> Hermes:
    return Hermes(tokens=frozenset(single_tokens(tokenizer, Hermes.spelled)))


def default_model(engine: str) -> Path:
    path = locate(DEFAULT_WEIGHTS, load_catalog({}), config.cache())
    if path is None:
        raise SystemExit(f"fetch the model for {engine} first: moonbase models pull")
    return path


def subject(engine: str, vocabulary: Path, folder: Path, *, uniform: bool = False) -> Subject:
    """The engine with that name; a random model is written into `folder`. Puts vLLM on the PATH."""
    likings = {} if uniform else tiny_k2.LIKINGS
    weights = "Kimi K2's architecture, random weights" + (", all tokens alike" if uniform else "")
    match engine:
        case "openvino":
            return Subject(engine, EngineSettings(), "SmolLM2-135M", _version(engine))
        case "llamacpp-smollm2":
            return Subject(engine, EngineSettings(name="llamacpp", max_running=4), "SmolLM2-135M", _version(engine))
        case "llamacpp":
            file = folder / "tiny-k2.gguf"
            tiny_k2_gguf.write(vocabulary, file, likings)
            settings = EngineSettings(name="llamacpp", model=str(file), max_running=4)
            return Subject(engine, settings, weights, _version(engine), calls=not uniform)
        case _:
            model = folder / "tiny-k2"
            liked = [f"{token}={logit}" for token, logit in likings.items()]
            script = _ROOT / "tests" / "engines" / "tiny_k2.py"
            subprocess.run([VLLM / "python", script, vocabulary, model, *liked], check=True)
            os.environ["PATH"] = f"{VLLM}{os.pathsep}{os.environ['PATH']}"
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            settings = EngineSettings(
                name="vllm",
                model=str(model),
                vocabulary=str(vocabulary),
                arguments=("--enforce-eager", "--max-model-len", "8192"),
            )
            return Subject(engine, settings, weights, vllm_version(), calls=not uniform)


def _version(engine: str) -> str:
    package = _PACKAGES[engine]
    return f"{package} {version(package)}"


class Round(Struct, frozen=True):
    """What `moonbase verify` found for one `tool_choice`, and what it took: seconds, and CPU seconds of the server
    with all its processes. `seen` are the problems.
    """

    choice: CallChoice
    overall: dict[str, int]
    bounded: dict[str, int]
    seen: list[str]
    seconds: float
    cpu: float

    @property
    def invalid(self) -> int:
        """Answers that the server itself reports as an error: the output broke a bound that is too expensive to be held
        while it is generated, and so is checked afterwards.
        """
        return sum([_INVALID in one for one in self.seen])

    def missed(self, *, calls: bool, least_finished: float = 0.8) -> list[str]:
        """What is not as it must be. `least_finished` is the share of forced calls that must come to their end, and
        `calls` whether there must be some that are not forced.
        """
        all_, bounded, forced = self.overall, self.bounded, self.choice != "auto"
        endless = self.choice != "named"  # a model may call again and again, and no schema bounds that
        demands = {
            "every request is answered": all_["answered"] + self.invalid == all_["requests"],
            "outputs that break a bound are rare": self.invalid <= all_["requests"] // 100,
            "a demanded call comes": not (forced and all_["other"]),
            "there are calls": all_["calls"] > 0 or not (forced or calls),
            "declared names": all_["declared_names"] == all_["calls"],
            "valid arguments": all_["valid_arguments"] == all_["calls"],
            "right ids": all_["right_ids"] == all_["calls"],
            "answers that were cut hold the beginning of JSON": all_["valid_prefixes"] == all_["length"],
            "bounded schemas finish": endless or not bounded["length"],
            "enough finish": not forced or all_["tool_calls"] >= least_finished * all_["requests"],
        }
        return [f"{self.choice}: {demand}" for demand, met in demands.items() if not met]


def verify(
    server: Server, choice: CallChoice, schemas: Path, count: int, *, streams: int = 8, max_tokens: int = MAX_TOKENS
) -> Round:
    """Run the harness as its users do."""
    began, cpu = time.monotonic(), cpu_of_tree(server.process.pid)
    command = [
        *(sys.executable, "-m", "moonbase", "verify", f"http://{server.host}:{server.port}/v1"),
        *("--model", MODEL, "--only", "schemas.*", "--schemas", str(schemas), "--count", str(count)),
        *("--choice", choice, "--max-tokens", str(max_tokens), "--concurrency", str(streams), "--json", "-"),
    ]
    environment = {**os.environ, "MOONSHOT_API_KEY": server.key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    figures = found["figures"]["schemas"]
    seen = [
        f"{result['name']}: {one}"
        for result in found["results"]
        if result["status"] == "failed"
        for one in result["seen"]
    ]
    return Round(
        choice,
        figures["overall"],
        figures["bounded"],
        seen,
        time.monotonic() - began,
        cpu_of_tree(server.process.pid) - cpu,
    )


def cpu_of_tree(pid: int) -> float:
    """CPU seconds of a process and of those it has started, as far as they live."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    children = {int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()}
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_of_tree, children))


class Replayed(Struct, frozen=True):
    """How many outputs were recorded, what was in them, and where playing them gave another answer."""

    outputs: int
    tokens: int
    calls: int
    cut: int
    differences: list[str]


def replay_bodies(cases: tuple[SchemaCase, ...], count: int, max_tokens: int) -> list[Json]:
    """Requests of all three kinds in turn, over all cases, each with a user message of its own."""
    plans = [SchemaPlan(cases=cases, choice=choice, max_tokens=max_tokens) for choice in CHOICES]
    bodies: list[Json] = []
    for number in range(count):
        at = number * len(cases) // count  # spread over the cases
        fields = plans[number % len(plans)].request(2 * at).fields
        text = f"{number}: {fields['messages'][0]['content']}"
        bodies.append({"model": MODEL, **fields, "messages": [{"role": "user", "content": text}]})
    return bodies


async def replay(
    tested: Subject,
    cases: tuple[SchemaCase, ...],
    vocabulary: Path,
    count: int,
    *,
    streams: int = 8,
    max_tokens: int = MAX_TOKENS,
) -> Replayed:
    """Record `count` outputs of the engine and play them again."""
    parts = tested.parts()
    recordings = await record(parts, tested.settings, replay_bodies(cases, count, max_tokens), streams)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "script.jsonl"
        bodies = write_script(recordings, script, KimiTokenizer.read(vocabulary), parts.format.markers)
        format = f"engine.format={parts.format.name}"
        options = ["--set", "engine.name=echo", "--set", format, "--set", f"echo.script={script}"]
        with running(*options, cache=cache_with(vocabulary, folder / "cache")) as server:
            access = Access(model=MODEL, api_key=server.key, concurrency=4)
            async with UpstreamClient(f"http://{server.host}:{server.port}/v1") as client:
                found = await differences(Endpoint(client, access), recordings, bodies)
    return Replayed(
        len(recordings),
        sum([one.tokens for one in recordings]),
        sum([len(one.heard.calls) for one in recordings]),
        sum([one.cut for one in recordings]),
        found,
    )


def cache_with(vocabulary: Path, folder: Path) -> Path:
    """A cache in which `echo` finds the Kimi vocabulary."""
    target = folder / "vocabularies" / "kimi-k2"
    target.mkdir(parents=True)
    shutil.copy(vocabulary / "tiktoken.model", target)
    return folder


_COLUMNS = (
    "choice|requests|calls in answers that ended with them|declared names|valid arguments|right ids|cut|"
    "of these valid prefixes|no call|reported as invalid|finished|bounded: finished|wall, s|CPU, s"
)


def report(tested: Subject, rounds: list[Round], replayed: Replayed | None) -> Iterator[str]:
    """Lines of Markdown."""
    yield f"### {tested.engine}: {tested.model}"
    yield f"\n{tested.version}; commit {_commit()}; Python {sys.version.split()[0]}; `max_tokens` {MAX_TOKENS}.\n"
    if rounds:
        names = _COLUMNS.split("|")
        yield f"| {' | '.join(names)} |"
        yield "|---" * len(names) + "|"
    for each in rounds:
        all_, bounded = each.overall, each.bounded
        cells = [
            each.choice,
            all_["requests"],
            f"{all_['calls']} in {all_['tool_calls']}",
            *[all_[name] for name in ("declared_names", "valid_arguments", "right_ids", "length", "valid_prefixes")],
            all_["other"],
            each.invalid,
            f"{100 * (all_['tool_calls'] + all_['other']) / max(all_['answered'], 1):.1f} %",
            f"{bounded['tool_calls'] + bounded['other']} of {bounded['answered']}",
            f"{each.seconds:.0f}",
            f"{each.cpu:.0f}",
        ]
        yield f"| {' | '.join(map(str, cells))} |"
    if replayed is not None:
        yield (
            f"\nReplay: {replayed.outputs} outputs with {replayed.tokens} tokens and {replayed.calls} calls, "
            f"{replayed.cut} of them cut, played as a stream and in one piece: {len(replayed.differences)} differences."
        )
    for line in [one for each in rounds for one in each.seen][:20] + (replayed.differences[:20] if replayed else []):
        yield f"- {line[:400]}"
    yield ""


def _commit() -> str:
    found = subprocess.run(["git", "-C", str(_ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


@contextmanager
def serving(tested: Subject) -> Iterator[Server]:
    with running(*tested.options, cache=config.cache()) as server:
        yield server


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--schemas", type=Path, required=True)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500, help="calls for each choice")
    parser.add_argument("--choices", default=",".join(CHOICES))
    parser.add_argument("--replays", type=int, default=60, help="outputs to record and play; 0 for none")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--uniform", action="store_true", help="random weights that like no token better")
    parser.add_argument("--report", type=Path, help="file to append the report to")
    options = parser.parse_args()
    vocabulary = options.vocabulary.resolve()
    missed: list[str] = []
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        tested = subject(options.engine, vocabulary, Path(folder), uniform=options.uniform)
        if options.count:
            with serving(tested) as server:
                for choice in options.choices.split(","):
                    rounds.append(verify(server, choice, options.schemas, options.count, streams=options.streams))
                    missed += rounds[-1].missed(calls=tested.calls)
                    print(rounds[-1], flush=True)
        replayed = None
        if options.replays:
            cases, _ = read_cases(options.schemas)
            replayed = asyncio.run(replay(tested, cases, vocabulary, options.replays, streams=options.streams))
            missed += ["replayed answers are those recorded"] if replayed.differences else []
    text = "\n".join(report(tested, rounds, replayed))
    print(text)
    if options.report is not None:
        with options.report.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    if missed:
        raise SystemExit("MISSED: " + "; ".join(missed))


if __name__ == "__main__":
    main()
