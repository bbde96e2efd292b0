"""How many tokens a prompt should have."""

from pathlib import Path

import pytest
from tests.e2e.server import kimi_vocabulary

from moonbase.errors import ConfigurationError
from moonbase.verify.prompt_tokens import PromptCounter, prompt_cases

HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def vocabulary() -> Path:
    file = kimi_vocabulary()
    if file is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; put it at ../shared/data/kimi-tokenizer/tiktoken.model")
    return file


@pytest.mark.parametrize(
    ("revision", "more", "expected"),
    [
        ("kimi-k2-thinking", {}, 26),  # kimi-protocol.md 2.6, G1
        ("kimi-k2.6", {}, 9),  # G2
        ("kimi-k2.6", {"thinking": {"type": "disabled"}}, 10),
    ],
)
def test_prompts_are_counted_as_the_template_renders_them(
    revision: str, more: dict[str, object], expected: int, vocabulary: Path
) -> None:
    assert PromptCounter(revision, vocabulary).count(HI | more) == expected
    assert PromptCounter(revision, vocabulary.parent).count(HI | more) == expected


def test_cases_of_a_file_bring_their_number_or_are_counted(vocabulary: Path, tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Hi"}], "expected": 99}\n')

    (case,) = prompt_cases(None, file)
    assert (case.label, case.expected, case.fields) == ("cases.jsonl:1", 99, HI)

    file.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    assert prompt_cases(PromptCounter("kimi-k2.6", vocabulary), file)[-1].expected == 9


@pytest.mark.parametrize("line", ['{"messages": []}', '{"expected": 3}', '{"messages": 1, "expected": 3}'])
def test_a_case_without_a_number_needs_something_that_counts(line: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text(line)
    with pytest.raises(ConfigurationError, match="line 1"):
        prompt_cases(None, file)


def test_an_unknown_revision_is_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="kimi-k2-0905"):
        PromptCounter("kimi-k9", tmp_path)
