"""Settings: where a value comes from, and the sentence for a wrong one."""

from pathlib import Path

import pytest

from moonbase import config
from moonbase.config import Settings
from moonbase.errors import ConfigurationError


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "moonbase.toml"
    file.write_text("[server]\nport = 1\nbody_timeout = 1\nheader_timeout = 1\n")
    environ = {"MOONBASE_SERVER_PORT": "2", "MOONBASE_SERVER_BODY_TIMEOUT": "2"}
    server = config.load(file, {"server.port": "3"}, environ).server
    assert (server.port, server.body_timeout, server.header_timeout, server.shutdown_grace) == (3, 2.0, 1.0, 30.0)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("server.allowed_hosts", "a.example, *.b.example", ("a.example", "*.b.example")),
        ("server.allowed_hosts", "", ()),
        ("server.public", "true", True),
        ("server.header_timeout", "0.5", 0.5),
        ("chaos.faults", "stall,cut", ("stall", "cut")),
        ("engine.arguments", "--swap-space, 0", ("--swap-space", "0")),
        ("engine.enforce", "false", False),
        ("engine.format", "kimi-k2.5", "kimi-k2.5"),
        ("metrics.port", "9000", 9000),
        ("database.url", "sqlite:///a=b.db", "sqlite:///a=b.db"),
        ("mode", "strict", "strict"),
    ],
)
def test_text_becomes_the_type_of_its_setting(key: str, text: str, value: object) -> None:
    for settings in (
        config.load(None, {key: text}, {}),
        config.load(None, {}, {"MOONBASE_" + key.replace(".", "_").upper(): text}),
    ):
        found: object = settings
        for name in key.split("."):
            found = getattr(found, name)
        assert found == value


def test_a_models_dots_are_its_own() -> None:
    settings = config.load(None, {"models.kimi-k2.5.window": "9", "models.kimi-k2.5.alias_of": "kimi-latest"}, {})
    assert settings.models["kimi-k2.5"].window == 9
    assert settings.models["kimi-k2.5"].alias_of == "kimi-latest"


def test_deployments_have_the_keys_of_the_engine_and_names_with_dots(tmp_path: Path) -> None:
    file = tmp_path / "moonbase.toml"
    file.write_text(
        '[deployments."kimi.local"]\nname = "echo"\nmodel = "m"\n[models.mine]\ndeployment = "kimi.local"\n'
    )
    overrides = {"deployments.kimi.local.arguments": "-a,-b", "deployments.cloud.name": "moonshot"}
    settings = config.load(file, overrides, {})
    local = settings.deployments["kimi.local"]
    assert (local.name, local.model, local.arguments) == ("echo", "m", ("-a", "-b"))
    assert settings.deployments["cloud"].name == "moonshot"
    assert settings.models["mine"].deployment == "kimi.local"


def test_an_engine_elsewhere_needs_its_address() -> None:
    for table in ("engine", "deployments.team"):
        with pytest.raises(ConfigurationError, match=rf"^{table}\.url: must be set for the engine openai$"):
            config.load(None, {f"{table}.name": "openai"}, {})
        assert config.load(None, {f"{table}.name": "openai", f"{table}.url": "http://h/v1"}, {})


NO_SUCH = "there is no such setting; docs/reference/settings.md lists them"
QUOTES = "a name with a dot needs quotes"

WRONG = {
    "server.prot": ("1", f"server.prot: {NO_SUCH}. Did you mean `server.port`?"),
    "server": ("1", "server: there is no such setting"),
    "": ("1", ": there is no such setting"),
    "server.port": ("many", "server.port: Expected `int`, got `str`"),
    "metrics.port": ("70000", "metrics.port: Expected `int` <= 65535"),
    "server.header_timeout": ("0", "server.header_timeout: Expected `float` > 0.0"),
    "server.body_timeout": ("nan", "server.body_timeout: "),
    "engine.max_running": ("0", "engine.max_running: Expected `int` >= 1"),
    "engine.name": ("magic", "engine.name: Invalid enum value 'magic'"),
    "engine.format": ("chatml", "engine.format: Invalid enum value 'chatml'; choose from hermes, "),
    "engine.enforce": ("perhaps", "engine.enforce: Expected `bool`, got `str`"),
    "engine.url": ("http://h/v1", "engine has no `name`, so it is openvino, which takes no `url`"),
    "deployments.a.url": ("http://h/v1", "deployments.a has no `name`, so it is openvino, which takes no `url`"),
    "engine.api_key": ("k", "engine.api_key: is for an engine with a url"),
    "deployments.x.name": ("magic", "deployments.x.name: Invalid enum value 'magic'; choose from openvino, "),
    "deployments.x.nmae": ("echo", "deployments.x.nmae: there is no such setting; "),
    "deployments.x.max_running": ("0", "deployments.x.max_running: "),
    "deployments.x": ("5", "deployments.x: "),
    "models.new.deployment": ("x", "models.new.deployment: there is no table [deployments.x]"),
    "mode": ("loose", "mode: Invalid enum value 'loose'"),
    "chaos.fault_rate": ("1.5", "chaos.fault_rate: Expected `float` <= 1.0"),
    "chaos.faults": ("stall,bang", "chaos.faults: Invalid enum value 'bang'"),
    "server.public": ("perhaps", "server.public: Expected `bool`, got `str`"),
    "server.host": ("0.0.0.0", "server.host: 0.0.0.0 can be reached from other machines"),
    "server.tls_key": ("key.pem", "server.tls_certificate and server.tls_key must be set together"),
    "models.new.wndow": ("5", "models.new.wndow: there is no such setting; "),
    "models.new.window": ("0", "models.new.window: "),
    "models.new": ("5", "models.new: "),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_one_sentence_that_names_its_key(key: str) -> None:
    text, sentence = WRONG[key]
    with pytest.raises(ConfigurationError) as failed:
        config.load(None, {key: text}, {})
    assert str(failed.value).startswith(sentence)
    assert "\n" not in str(failed.value)
    assert key.rpartition(".")[2] in str(failed.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[server\nport=1", "is not valid TOML"),
        ("[server]\nprot = 1\n", f"server.prot: {NO_SUCH}. Did you mean `port`?"),
        ("[srever]\nport = 1\n", f"srever: {NO_SUCH}. Did you mean `server`?"),
        ("[engine]\nnam = 'echo'\n", f"engine.nam: {NO_SUCH}. Did you mean `name`?"),
        ("[engine]\nzzz = 1\n", f"engine.zzz: {NO_SUCH}"),
        ("[deployments.a]\nnam = 'echo'\n", f"deployments.a.nam: {NO_SUCH}. Did you mean `name`?"),
        ("[models.new]\nwndow = 5\n", f"models.new.wndow: {NO_SUCH}. Did you mean `window`?"),
        ("[models.kimi-k2.6]\nwindow = 5\n", f'models.kimi-k2.6: {QUOTES}: [models."kimi-k2.6"]'),
        ("[models.a.b.c]\nwindow = 5\n", f'models.a.b.c: {QUOTES}: [models."a.b.c"]'),
        ("[deployments.a.b]\nname = 'echo'\n", f'deployments.a.b: {QUOTES}: [deployments."a.b"]'),
        ("[engine.zzz]\nname = 'echo'\n", f"engine.zzz: {NO_SUCH}"),
        ("models = 5\n", "models: Expected `object`, got `int`"),
        ("[models]\nnew = 5\n", "models.<id>: Expected `object`, got `int`"),
        ("[mode]\na = 1\n", "mode: Expected `str`, got `object`"),
        ("[server]\nport = '1'\n", "server.port: Expected `int`, got `str`"),
        ("[server]\nallowed_hosts = ['a', 5]\n", "server.allowed_hosts[1]: Expected `str`, got `int`"),
        ("[server]\nallowed_hosts = 'a'\n", "server.allowed_hosts: Expected `array`, got `str`"),
        ("[models.new]\nalias_of = 'kimi-latest'\nprice_miss = 1.5\n", "models.<id>.price_miss: Expected `str"),
        ("server = 5\n", "server: Expected `object`, got `int`"),
        ("mode = " + "[" * 5_000 + "]" * 5_000, "is nested too deeply"),
        ("mode = []\n", "mode: Expected `str`, got `array`"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_file_and_key(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "moonbase.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as failed:
        config.load(file, {}, {})
    assert str(failed.value).startswith(f"{file}: {sentence}")
    assert ("Did you mean" in str(failed.value)) == ("Did you mean" in sentence)


def test_a_deployment_with_an_address_and_a_name_that_takes_none_says_which(tmp_path: Path) -> None:
    file = tmp_path / "moonbase.toml"
    file.write_text("[deployments.a]\nurl = 'http://h'\n")
    with pytest.raises(ConfigurationError, match=r"^deployments\.a has no `name`, so it is openvino, which takes"):
        config.load(file, {}, {})
    with pytest.raises(ConfigurationError, match=r"^deployments\.a\.url: the engine openvino runs here and has"):
        config.load(file, {"deployments.a.name": "openvino"}, {})
    assert config.load(file, {"deployments.a.name": "vllm"}, {}).deployments["a"].url == "http://h"


@pytest.mark.parametrize("token", ["", "  ", "a\nb", "a\x00", "geheimnis-\u00fc"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ConfigurationError) as failed:
        config.load(None, {"metrics.token": token}, {})
    assert str(failed.value) == "metrics.token: must be printable ASCII text that is not empty"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "moonbase.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"moonbase\.toml"):
        config.load(file, {}, {})


def test_unknown_variables_of_ours_are_mistakes_and_others_are_not() -> None:
    with pytest.raises(ConfigurationError, match=f"MOONBASE_SERVER_PRT: {NO_SUCH}. Did you mean `MOONBASE_SERVER_PORT"):
        config.load(None, {}, {"MOONBASE_SERVER_PRT": "1"})
    with pytest.raises(ConfigurationError, match="MOONBASE_SERVER_PORT"):
        config.load(None, {}, {"MOONBASE_SERVER_PORT": "many"})
    others = {"PORT": "many", "MOONBASE_HOME": "/a", "MOONBASE_CACHE": "/b", "MOONBASE_CONFIG": "c"}
    assert config.load(None, {}, others) == Settings()


def test_what_kubernetes_sets_for_a_service_of_our_name_is_ignored() -> None:
    environ = {
        "MOONBASE_SERVICE_HOST": "10.0.0.1",
        "MOONBASE_SERVICE_PORT": "8000",
        "MOONBASE_PORT": "tcp://10.0.0.1:8000",
        "MOONBASE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "MOONBASE_PORT_8000_TCP_PROTO": "tcp",
    }
    assert config.load(None, {}, environ) == Settings()
    assert config.load(None, {}, environ | {"MOONBASE_SERVER_PORT": "9"}).server.port == 9


def test_every_setting_is_described_with_its_variable_and_default() -> None:
    rows = {key: (variable, default, text) for key, variable, default, text in config.describe()}
    assert rows["server.port"] == ("MOONBASE_SERVER_PORT", "8000", "Port to listen on; 0 takes a free one.")
    assert rows["mode"][:2] == ("MOONBASE_MODE", '"lenient"')
    assert all(text for _, _, text in rows.values())
    assert len({variable for variable, _, _ in rows.values()}) == len(rows)


def test_folders_are_the_platforms_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert config.home({}) == Path("/home/ada/.local/share/moonbase")
    assert config.cache({}) == Path("/home/ada/.cache/moonbase")
    assert config.home({"XDG_DATA_HOME": "/data"}) == Path("/data/moonbase")
    assert config.cache({"XDG_CACHE_HOME": "/c", "MOONBASE_CACHE": "/mine"}) == Path("/mine")
    assert config.home({"MOONBASE_HOME": "~/kimi"}) == Path("/home/ada/kimi")
    assert config.home({"MOONBASE_HOME": "here"}).is_absolute()
