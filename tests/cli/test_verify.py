"""`moonbase verify` against servers of our own: without a fault, and with each that `chaos` can be given."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.e2e.server import K2, Server, cache_with_kimi_vocabulary, eventually, kimi_vocabulary
from typer.testing import CliRunner, Result

from moonbase.cli.verify import verify
from moonbase.errors import ConfigurationError

APP = typer.Typer()
APP.command()(verify)

StartServer = Callable[..., Server]

PASSED_ON = "kimi-k2-0711-preview"
REFUSED = {"tools.required", "tools.named", "tools.auto", "tools.parallel"}
JSON = {"json.object", "json.schema"}
EMPTY = {"chat.completion", "tools.auto", "tools.none"}
FAULTS = {
    # what fails where outputs are passed on as they are, and where ours makes them explicit errors
    "undeclared_tool": ({"tools.named", "tools.names"}, REFUSED),
    "invalid_arguments": ({"tools.schema"}, REFUSED | {"tools.cut"}),
    "broken_arguments": ({"tools.json"}, REFUSED),
    "missing_call": ({"tools.required", "tools.named"}, REFUSED - {"tools.auto"} | {"tools.cut"}),
    "parallel_calls": ({"tools.parallel"}, {"tools.parallel"}),
    "leaked_marker": ({"chat.markers"}, {"chat.markers"}),
    "prose_answer": (JSON, JSON),
    "invalid_answer": (JSON, JSON),
    "empty_answer": (EMPTY, EMPTY),
    "cut_short": ({"chat.finish"}, {"chat.finish"}),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """`start(*args, …)`: a server, ended with the module. Held to a clean end."""
    servers: list[Server] = []

    def started(*args: str, engine: str = "chaos", **options: Any) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server"), *args, engine=engine, **options))
        return servers[-1]

    yield started
    for server in servers:
        if server.process.returncode is None:
            server.close()


@pytest.fixture(scope="module")
def sound(start: StartServer) -> Server:
    """The `chaos` engine without a fault."""
    return start("--set", "chaos.fault_rate=0")


def run(server: Server, *args: str, model: str = K2, key: str | None = None) -> Result:
    arguments = [server.base_url, "--model", model, "--retries", "0", "--concurrency", "32", *args]
    return CliRunner().invoke(APP, arguments, env={"MOONSHOT_API_KEY": key or server.key, "COLUMNS": "200"})


def report(server: Server, *args: str, model: str = K2) -> dict[str, Any]:
    """The JSON report of a run."""
    result = run(server, "--json", "-", *args, model=model)
    assert result.exit_code in (0, 1), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["passed"] is (result.exit_code == 0)
    return found


def statuses(found: dict[str, Any], *wanted: str) -> dict[str, str]:
    """Of the checks with these statuses, what was seen first."""
    return {each["name"]: each["seen"][:1] for each in found["results"] if each["status"] in wanted}


def test_our_own_server_passes_every_check(sound: Server) -> None:
    found = report(sound)

    assert statuses(found, "failed", "warned", "skipped") == {}
    assert found["passed"] is True
    assert len(found["results"]) > 40
    assert found["requests"] > len(found["results"])


def test_with_the_real_vocabulary_prompts_have_the_tokens_of_the_template(start: StartServer, tmp_path: Path) -> None:
    vocabulary = kimi_vocabulary()
    if vocabulary is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; put it at ../shared/data/kimi-tokenizer/tiktoken.model")
    server = start("--set", "chaos.fault_rate=0", cache=cache_with_kimi_vocabulary(tmp_path))

    found = report(server, "--revision", "kimi-k2-0905", "--vocabulary", str(vocabulary))

    assert statuses(found, "failed", "warned", "skipped") == {}
    assert all(case["got"] == case["expected"] for case in found["figures"]["prompt_tokens"])
    other = report(server, "--only", "prompt_tokens", "--revision", "kimi-k2.6", "--vocabulary", str(vocabulary))
    assert set(statuses(other, "failed")) == {"prompt_tokens"}


def test_the_hermes_format_passes_too(start: StartServer) -> None:
    found = report(start("--set", "chaos.fault_rate=0", "--set", "engine.format=hermes"))

    assert statuses(found, "failed", "warned", "skipped") == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found_by_the_checks_for_it(fault: str, start: StartServer) -> None:
    settings = {
        "chaos.faults": fault,
        "chaos.fault_rate": "1",
        "deployments.loose.name": "chaos",
        "deployments.loose.enforce": "false",
        f"models.{PASSED_ON}.deployment": "loose",
    }
    server = start(*[part for key, value in settings.items() for part in ("--set", f"{key}={value}")])

    passed_on = statuses(report(server, model=PASSED_ON), "failed")
    enforced = statuses(report(server), "failed")
    server.close()

    assert set(passed_on) == FAULTS[fault][0], passed_on
    assert set(enforced) == FAULTS[fault][1], enforced


def test_a_model_that_may_think_passes(start: StartServer) -> None:
    server = start("--set", "chaos.fault_rate=0", "--set", "engine.format=kimi-k2.6")
    fixed = [part for each in ("temperature=1", "top_p=0.95", "n=1") for part in ("--fixed", each)]

    found = report(server, "--thinking", "optional", *fixed, model="kimi-k2.6")

    assert statuses(found, "failed", "warned") == {}
    assert set(statuses(found, "skipped")) == {"stream.equal"}
    assert {"thinking.reasoning", "thinking.off", "fixed.n"} <= set(statuses(found, "passed"))


def test_a_model_that_never_stops_thinking_does_not(start: StartServer, tmp_path: Path) -> None:
    script = tmp_path / "raw.txt"
    script.write_text("The sea, I think. The sea is wide.")
    server = start("--set", f"echo.script={script}", "--set", "engine.format=kimi-k2.6", engine="echo")

    options = ["--only", "thinking.*", "--thinking", "always", "--fixed", "temperature=1"]
    found = report(server, *options, model="kimi-k2.6")

    assert statuses(found, "failed") == {
        "thinking.reasoning": ["a question: everything is reasoning, the content is empty"]
    }


def test_fixed_parameters_are_tried_with_another_value(sound: Server) -> None:
    fixed = [part for each in ("temperature=1", "top_p=0.95", "n=1") for part in ("--fixed", each)]

    right = report(sound, *fixed, "--only", "fixed.*", model="kimi-k2.6")
    wrong = report(sound, *fixed, "--only", "fixed.*")

    assert statuses(right, "passed").keys() == {"fixed.temperature", "fixed.top_p", "fixed.n"}
    assert statuses(wrong, "failed").keys() == {"fixed.temperature", "fixed.top_p", "fixed.n"}


def test_a_model_that_refuses_the_temperature_is_answered_with_a_hint(sound: Server) -> None:
    hint = "\nThis model allows one value only: try --fixed temperature=1 --fixed n=1\n"
    fixed = ["--fixed", "temperature=1", "--fixed", "n=1"]

    refused = run(sound, model="kimi-k2.6")
    accepted = run(sound, *fixed, model="kimi-k2.6")
    once = run(sound, "--only", "chat.n", "--fixed", "temperature=1", model="kimi-k2.6")

    assert (refused.exit_code, accepted.exit_code, once.exit_code) == (1, 0, 1)
    assert hint in refused.stdout
    assert "try --fixed" not in accepted.stdout
    assert "\nThis model allows one value only: try --fixed n=1\n" in once.stdout


def test_calls_of_a_folder_of_schemas_are_counted(sound: Server, tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "valid.jsonl").write_text(
        '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}\n'
        '{"type": "object", "properties": {"a": {"type": "string", "minLength": 200}}, "required": ["a"]}\n'
        '{"type": "array", "items": {"type": "boolean"}}\n'
        '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}\n'
    )
    (tmp_path / "suite" / "invalid.jsonl").write_text("not read\n")

    result = run(sound, "--only", "schemas.*", "--walle", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "1 of 4 schemas cannot be parameters of a tool" in result.stderr
    assert "declared names   6        2" in result.stdout

    cut = report(sound, "--only", "schemas.*", "--walle", str(tmp_path), "--max-tokens", "30", "--count", "12")
    assert set(statuses(cut, "failed")) == {"schemas.finished"}
    overall = cut["figures"]["schemas"]["overall"]
    assert (overall["requests"], overall["tool_calls"], overall["length"], overall["valid_prefixes"]) == (12, 8, 4, 4)


def test_how_far_it_is_shows_where_nobody_sees_a_bar(sound: Server) -> None:
    result = run(sound, "--only", "chat.usage", "--only", "chat.length")

    assert "contract: 2 of 2" in result.stderr.splitlines()


def test_an_interrupted_run_tells_what_it_found(sound: Server, tmp_path: Path) -> None:
    (tmp_path / "valid.jsonl").write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}\n')
    arguments = [sound.base_url, "--model", K2, "--json", "-", "--only", "schemas.*"]
    arguments += ["--schemas", str(tmp_path), "--count", "1000000"]
    before = sound.usage_count()
    command = [sys.executable, "-m", "moonbase", "verify", *arguments]
    environ = sound.environ | {"MOONSHOT_API_KEY": sound.key}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: sound.usage_count() > before + 50, within=30)  # some are recorded and still on their way
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "interrupted; this is what was found until then" in stderr
    found = json.loads(stdout)
    assert (found["interrupted"], found["passed"]) == (True, False)
    assert 10 <= found["figures"]["schemas"]["overall"]["answered"] < 1_000_000
    assert statuses(found, "passed").keys() >= {"schemas.names", "schemas.arguments"}


def requests(folder: Path) -> Path:
    """Three requests in the vendor verifier's form."""
    search = {
        "type": "function",
        "function": {
            "name": "search",
            "parameters": {
                "type": "object",
                "properties": {"queries": {"type": "array", "items": {"type": "string"}, "maxItems": 3}},
                "required": ["queries"],
            },
        },
    }
    called = {"id": "search:0", "type": "function", "function": {"name": "search", "arguments": '{"queries": ["a"]}'}}
    lines: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "你好"}], "tools": [search], "tool_choice": "required"},
        {"messages": [{"role": "user", "content": "你好"}], "tools": [search], "tool_choice": "none"},
        {
            "messages": [
                {"role": "user", "content": "Look it up"},
                {"role": "assistant", "content": "", "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "search:0", "content": "found"},
                {"role": "_input", "content": "Today is Friday."},
            ],
            "tools": [search],
            "tool_choice": "required",
        },
    ]
    file = folder / "samples.jsonl"
    more = {"model": "moonshot", "stream": True, "temperature": 0.6, "max_tokens": 16000}
    file.write_text("".join([json.dumps(more | line, ensure_ascii=False) + "\n" for line in lines]))
    return file


def test_the_vendor_verifiers_files_are_read_and_written(sound: Server, tmp_path: Path) -> None:
    results, summary, official = tmp_path / "r.jsonl", tmp_path / "s.json", tmp_path / "official.jsonl"
    reasons = ["tool_calls", "tool_calls", "tool_calls"]
    official.write_text("".join([f'{{"data_index": {n}, "finish_reason": "{r}"}}\n' for n, r in enumerate(reasons, 1)]))
    options = ["--only", "vendor.*", "--requests", str(requests(tmp_path)), "--results", str(results)]
    options += ["--summary", str(summary), "--against", str(official), "--temperature", "0.3"]

    found = report(sound, *options)
    assert statuses(found, "failed", "skipped") == {"vendor.f1": ["0.8000, wanted more than 0.8"]}
    assert found["figures"]["vendor"]["recall"] == pytest.approx(2 / 3)

    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["data_index"] for record in records] == [1, 2, 3]
    assert [record["finish_reason"] for record in records] == ["tool_calls", "stop", "tool_calls"]
    assert [record["tool_calls_valid"] for record in records] == [True, None, True]
    first = records[0]
    assert first["request"]["model"] == K2
    assert first["request"]["temperature"] == 0.3
    assert records[2]["request"]["messages"][-1]["role"] == "system"
    assert first["response"]["choices"][0]["message"]["tool_calls"][0]["id"] == "search:0"
    assert records[2]["response"]["choices"][0]["message"]["tool_calls"][0]["id"] == "search:1"
    assert first["response"]["usage"]["total_tokens"] > 0
    keys = "data_index request extra_body response status finish_reason tool_calls_valid last_run_at duration_ms hash"
    assert list(first) == keys.split()
    assert json.loads(summary.read_text())["successful_tool_call_count"] == 2

    assert report(sound, *options, "--min-f1", "0.73")["passed"] is True
    kept = report(sound, *options, "--min-f1", "0.73", "--incremental")
    assert kept["requests"] == 1  # the greeting only
    assert json.loads(results.read_text().splitlines()[0])["hash"] == first["hash"]


def test_the_table_shows_every_check_and_the_sum(sound: Server) -> None:
    result = run(sound, "--only", "errors.*", "--skip", "errors.key_*")

    assert result.exit_code == 0
    assert "errors.tool_type" in result.stdout
    assert "errors.key_missing" not in result.stdout
    assert "16 passed, 0 failed, 0 warned, 0 skipped" in result.stdout


def test_json_goes_to_a_file_beside_the_table(sound: Server, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    result = run(sound, "--only", "chat.usage", "--json", str(file))

    assert "chat.usage" in result.stdout
    written = json.loads(file.read_text())
    assert written["passed"] is True
    assert written["url"] == sound.base_url
    assert [each["name"] for each in written["results"]] == ["chat.usage"]


def test_a_failed_check_is_exit_code_1(sound: Server) -> None:
    result = run(sound, "--thinking", "always", "--only", "thinking.reasoning")

    assert result.exit_code == 1
    assert "there is no reasoning_content" in result.stdout


def test_an_endpoint_that_cannot_be_examined_is_exit_code_2(sound: Server) -> None:
    secret = "sk-this-must-not-be-seen"
    wrong_key = run(sound, key=secret)
    assert wrong_key.exit_code == 2
    assert "answered status 401: Invalid Authentication; give --api-key or set MOONSHOT_API_KEY" in wrong_key.stderr
    assert secret not in wrong_key.output

    unknown_model = run(sound, model="no-such-model")
    assert unknown_model.exit_code == 2
    assert "has no model 'no-such-model'; it has " in unknown_model.stderr

    arguments = [f"http://127.0.0.1:{sound.port}", "--model", K2]
    elsewhere = CliRunner().invoke(APP, arguments, env={"MOONSHOT_API_KEY": sound.key})
    assert elsewhere.exit_code == 2
    assert "give its address with the `/v1`" in elsewhere.stderr

    nowhere = CliRunner().invoke(APP, ["http://127.0.0.1:1/v1", "--model", K2], env={"MOONSHOT_API_KEY": secret})
    assert nowhere.exit_code == 2
    assert "http://127.0.0.1:1/v1 does not answer" in nowhere.stderr
    assert secret not in nowhere.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--extra-body", "[1]"], "is no JSON object"),
        (["--fixed", "temperature"], "is not NAME=NUMBER"),
        (["--revision", "kimi-k2-0905"], "go together"),
        (["--incremental"], "are for --requests"),
        (["--api-key", "two words"], "no blanks"),
        (["--only", "tools.nmaes"], "there is no check 'tools.nmaes'; did you mean 'tools.names'?"),
        (["--skip", "unheard-of"], "there is no check 'unheard-of'; the names are in docs/guides/verifying.md"),
        (["--only", "schemas.*"], "none of the chosen checks applies"),
    ],
)
def test_options_that_make_no_sense_are_exit_code_2(args: list[str], said: str, sound: Server) -> None:
    result = run(sound, *args)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--schemas", "empty"], "there are no .jsonl files"),
        (["--requests", "missing.jsonl"], "cannot be read"),
        (["--prompts", "missing.jsonl"], "cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(args: list[str], said: str, sound: Server, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=said):
        CliRunner().invoke(
            APP,
            [sound.base_url, "--model", K2, args[0], str(tmp_path / args[1])],
            env={"MOONSHOT_API_KEY": sound.key},
            catch_exceptions=False,
        )
