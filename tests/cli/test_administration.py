"""The commands of administrators: ids and rows on standard output, sentences on standard error."""

import csv
import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from moonbase.cli import app
from moonbase.errors import BalanceTooLow, Conflict, InvalidRequest, MoonbaseError, NotFound

cli = CliRunner()
K2 = "kimi-k2-0905-preview"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOONBASE_HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "somebody")
    return tmp_path


def run(*arguments: str) -> str:
    """What a command that succeeds prints."""
    result = cli.invoke(app, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.removesuffix("\n")


def refused(*arguments: str) -> Result:
    return cli.invoke(app, list(arguments))


def organization(name: str = "acme") -> str:
    return run("orgs", "create", "--name", name)


def test_an_organization_is_made_shown_changed_and_deleted() -> None:
    made = run("orgs", "create", "--name", "acme", "--region", "china", "--rpm", "5", "--tier", "1")
    assert run("orgs", "list").split("\t")[:6] == [made, "acme", "china", "1", "no", "rpm=5"]
    run("orgs", "update", made, "--postpaid", "--rpm", "none", "--tpd", "9", "--name", "apex")
    shown = json.loads(run("orgs", "show", made, "--format", "json"))
    limits = {"concurrency": None, "rpm": None, "tpm": None, "tpd": 9}
    assert (shown["name"], shown["currency"], shown["postpaid"], shown["limits"]) == ("apex", "CNY", True, limits)
    assert "name\tapex\n" in run("orgs", "show", made)
    assert "effective_limits\ttpd=9\n" in run("orgs", "show", made)
    assert run("orgs", "delete", made) == ""
    assert run("orgs", "list") == ""


def test_a_project_is_made_shown_changed_and_deleted() -> None:
    owner = organization()
    made = run("projects", "create", "--org", owner, "--name", "web", "--concurrency", "2")
    assert run("projects", "list", "--org", owner).split("\t")[:4] == [made, owner, "web", "concurrency=2"]
    run("projects", "update", made, "--name", "shop")
    assert json.loads(run("projects", "show", made, "--format", "json"))["name"] == "shop"
    run("projects", "delete", made)
    assert json.loads(run("projects", "list", "--format", "json")) == []


def test_a_key_opens_what_it_was_made_for() -> None:
    project = run("projects", "create", "--org", organization(), "--name", "web")
    scopes = ["--model", K2, "--model", "kimi-k2.6", "--endpoint", "chat", "--endpoint", "models", "--expires", "30d"]
    secret = run("keys", "create", "--name", "k", "--project", project, *scopes, "--rpm", "3")
    assert secret.startswith("sk-")
    (key,) = json.loads(run("keys", "list", "--project", project, "--format", "json"))
    assert (key["models"], key["endpoints"], key["limits"]["rpm"]) == ([K2, "kimi-k2.6"], ["chat", "models"], 3)
    assert key["expires_at"] - key["created_at"] == 30 * 86_400_000
    assert json.loads(run("keys", "show", key["id"], "--format", "json")) == key
    run("keys", "update", key["id"], "--model", "all", "--endpoint", "all", "--expires", "never", "--rpm", "none")
    (key,) = json.loads(run("keys", "list", "--json"))
    assert (key["models"], key["endpoints"], key["limits"]["rpm"], key["expires_at"]) == (None, None, None, None)
    (line,) = csv.DictReader(run("keys", "list", "--format", "csv").splitlines())
    assert (line["id"], line["project_id"], line["revoked_at"]) == (key["id"], project, "")


def test_money_comes_and_goes() -> None:
    owner = organization()
    result = cli.invoke(app, ["credit", "add", owner, "12.5", "--note", "invoice 7"])
    assert result.stderr == "acme (USD, tier 1): cash 12.50, voucher 0.00, available 12.50\n"
    for _ in range(2):
        run("credit", "add", owner, "3", "--voucher", "--idempotency-key", "gift")
    run("credit", "take", owner, "1.25", "--voucher", "--note", "mistake")
    balance = {"available": "14.25", "voucher": "1.75", "cash": "12.50", "currency": "USD"}
    assert json.loads(run("credit", "show", owner, "--format", "json")) == balance
    rows = list(csv.DictReader(run("credit", "entries", owner, "--format", "csv").splitlines()))
    assert [(row["kind"], row["cash"], row["voucher"], row["note"]) for row in rows] == [
        ("correction", "0.00", "-1.25", "mistake"),
        ("credit", "0.00", "3.00", ""),
        ("credit", "12.50", "0.00", "invoice 7"),
    ]
    assert len(run("credit", "entries", owner, "--kind", "correction").splitlines()) == 1


def test_what_a_spreadsheet_would_calculate_is_text_in_csv() -> None:
    owner = organization()
    run("orgs", "update", owner, "--name", "=HYPERLINK(1)")
    run("credit", "add", owner, "1", "--note", "@SUM(1+1)")
    run("credit", "take", owner, "0.5", "--note", "-1+1")
    (row,) = csv.DictReader(run("orgs", "list", "--format", "csv").splitlines())
    assert row["name"] == "'=HYPERLINK(1)"
    rows = list(csv.DictReader(run("credit", "entries", owner, "--format", "csv").splitlines()))
    assert [(row["note"], row["cash"]) for row in rows] == [("'-1+1", "-0.50"), ("'@SUM(1+1)", "1.00")]


def test_prices_are_set_and_removed() -> None:
    prices = ["--miss", "1", "--hit", "0.1", "--output", "2"]
    run("prices", "set", K2, "--currency", "USD", "--since", "2026-12-01", *prices)
    listed = run("prices", "list", "--model", K2).splitlines()
    assert f"{K2}\tUSD\t2026-12-01\t1.00\t0.10\t1.00\t2.00" in listed
    run("prices", "remove", K2, "--currency", "USD", "--since", "2026-12-01")
    assert len(run("prices", "list", "--model", K2).splitlines()) == len(listed) - 1


def use(home: Path, owner: str, model: str) -> None:
    """A record of a request, as the rollups have it."""
    database = sqlite3.connect(home / "moonbase.db")
    row = ("proj-a", "ak-a", model, "USD", 2, 1, 10, 20, 0, 30, 1_500_000_000)
    for table, start in (("usage_day", 1_795_046_400_000), ("usage_hour", 1_795_050_000_000)):
        marks = ", ".join("?" * 13)
        database.execute(f"INSERT INTO {table} VALUES ({marks})", (owner, start, *row))
    database.commit()
    database.close()


def test_usage_is_a_table_csv_or_json(home: Path) -> None:
    owner = organization()
    use(home, owner, K2)
    use(home, owner, "kimi-k2.6")
    days = ["--from", "2026-11-19", "--to", "2026-11-19"]
    assert run("usage", *days) == "2026-11-19\tUSD\t4\t2\t20\t40\t0\t60\t3.00"
    assert run("usage", "--by", "hour", *days).startswith("2026-11-19T01:00Z\t")
    (row,) = json.loads(run("usage", "--by", "organization,model", "--model", K2, *days, "--format", "json"))
    assert (row["organization_id"], row["model"], row["requests"], row["cost"]) == (owner, K2, 2, "1.50")
    assert "day" not in row
    lines = run("usage", "--by", "model", "--org", owner, *days, "--format", "csv").splitlines()
    assert lines[0] == "model,currency,requests,failed,prompt_miss,prompt_hit,prompt_write,output,cost"
    assert len(lines) == 3
    assert "kimi-k2.6" in run("usage", "--by", "model", *days, "--format", "table")


def test_the_audit_log_says_who_did_what() -> None:
    owner = organization()
    run("credit", "add", owner, "1")
    newest, oldest = (json.loads(json.dumps(row)) for row in json.loads(run("audit", "--format", "json")))
    assert (newest["action"], newest["target"], newest["actor"]) == ("credit.add", owner, "cli:somebody")
    assert oldest["detail"]["name"] == "acme"
    assert len(run("audit", "--target", owner, "--limit", "1").splitlines()) == 1
    assert run("audit", "--before", str(oldest["id"])) == ""


def test_an_admin_key_is_shown_once() -> None:
    secret = run("admin", "create", "--name", "ops")
    assert secret.startswith("adm-")
    (key,) = json.loads(run("admin", "list", "--format", "json"))
    run("admin", "revoke", key["id"])
    assert json.loads(run("admin", "list", "--format", "json"))[0]["revoked_at"] is not None
    assert secret not in run("admin", "list", "--format", "json")


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        (["orgs", "create", "--name", "acme"], Conflict, "`name` is taken: there is an organization 'acme'"),
        (["orgs", "create", "--name", "b", "--tier", "6"], InvalidRequest, "the `tier` field in the request is"),
        (["orgs", "create", "--name", "b", "--region", "mars"], InvalidRequest, "`region` field .* Invalid enum value"),
        (["orgs", "create", "--name", "b", "--rpm", "0"], InvalidRequest, "`limits.rpm` field in the request is"),
        (["orgs", "show", "org-none"], NotFound, "there is no organization 'org-none'"),
        (["projects", "create", "--org", "org-none", "--name", "p"], NotFound, "there is no organization 'org-none'"),
        (["keys", "create", "--name", "k", "--model", "gpt-5"], InvalidRequest, "`models` names the model 'gpt-5'"),
        (["keys", "create", "--name", "k", "--endpoint", "files"], InvalidRequest, r"`endpoints.0` field .* illegal"),
        (["keys", "create", "--name", "k", "--expires", "soon"], InvalidRequest, "`expires` must be a day"),
        (["credit", "add", "ORG", "--", "-5"], InvalidRequest, "`amount` is illegal: '-5' is not an amount"),
        (["credit", "add", "ORG", "1e30"], InvalidRequest, "`amount` must be a decimal such as 12.50"),
        (["credit", "take", "ORG", "1", "--note", "x", "--voucher"], BalanceTooLow, "`amount` is too much: 0 can be"),
        (["prices", "set", K2, "--currency", "EUR", "--since", "2026-12-01", "--miss", "1", "--output", "1"],
         InvalidRequest, "`currency` field .* Invalid enum value 'EUR'"),
        (["prices", "set", K2, "--currency", "USD", "--since", "1.12.2026", "--miss", "1", "--output", "1"],
         InvalidRequest, "`since` field .* Invalid RFC3339 encoded date"),
        (["usage", "--from", "2026-11-02", "--to", "2026-11-01"], InvalidRequest, "`from` must not be after `to`"),
        (["usage", "--request", "none"], NotFound, "there is no usage record of a request 'none'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_an_error_of_our_tree(
    arguments: list[str], kind: type[MoonbaseError], sentence: str
) -> None:
    owner = organization()
    before = run("audit")
    result = refused(*[owner if each == "ORG" else each for each in arguments])
    with pytest.raises(kind, match=sentence):
        raise result.exception or AssertionError(result.output)
    assert result.stdout == ""
    assert run("audit") == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["orgs", "create", "--name", "b", "--rpm", "many"],
        ["orgs", "create", "--name", "b", "--rpm", "9" * 5000],
        ["audit", "--before", str(2**64)],
        ["orgs", "update", "org-some"],
        ["keys", "update", "ak-some"],
        ["usage", "--by", "colour"],
        ["usage", "--from", "yesterday"],
        ["credit", "entries", "org", "--kind", "gift"],
        ["audit", "--limit", "0"],
    ],
)
def test_an_option_of_no_meaning_is_a_usage_error(arguments: list[str]) -> None:
    assert refused(*arguments).exit_code == 2


COMMANDS = [
    [], ["orgs"], ["orgs", "create"], ["orgs", "update"], ["projects", "create"], ["keys", "create"], ["keys", "list"],
    ["keys", "update"], ["credit", "add"], ["credit", "take"], ["credit", "entries"], ["prices", "set"],
    ["prices", "list"], ["usage"], ["audit"], ["admin", "create"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_into_eighty_columns(command: list[str]) -> None:
    result = cli.invoke(app, [*command, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "…  " not in result.stdout, "nothing is cut off"
