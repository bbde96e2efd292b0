"""What a scrape shows of what was counted."""

from prometheus_client.metrics_core import HistogramMetricFamily

from moonbase.telemetry import Histogram, Metrics


def values(histogram: Histogram) -> dict[str, float]:
    """The value of each bucket by its bound, and the sum."""
    family = HistogramMetricFamily("seconds", "For this test.", labels=["model"])
    histogram.add_to(family, ["m"])
    return {sample.labels.get("le", sample.name.removeprefix("seconds_")): sample.value for sample in family.samples}


def test_an_observation_may_stand_for_many() -> None:
    histogram = Histogram((0.5, 1.0))
    histogram.observe(0.25, 4)
    histogram.observe(0.75)
    histogram.observe(2.0, 2)
    assert values(histogram) == {"0.5": 4, "1.0": 5, "+Inf": 7, "count": 7, "sum": 4 * 0.25 + 0.75 + 2 * 2.0}


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((0.5, 1.0))
    histogram.observe(0.5)
    assert values(histogram)["0.5"] == 1


def test_the_time_between_tokens_counts_tokens() -> None:
    metrics = Metrics()
    metrics.model("m").inter_token.observe(0.25, 8)
    lines = metrics.exposition().decode().splitlines()
    assert 'moonbase_inter_token_seconds_count{model="m"} 8.0' in lines
    assert 'moonbase_inter_token_seconds_sum{model="m"} 2.0' in lines


def test_one_family_holds_a_gauge_of_several_models() -> None:
    metrics = Metrics()
    metrics.gauge("moonbase_running", "Choices.", "one", lambda: 1)
    metrics.gauge("moonbase_running", "Choices.", "two", lambda: 2)
    text = metrics.exposition().decode()
    assert text.count("# TYPE moonbase_running gauge") == 1
    assert 'moonbase_running{model="one"} 1.0' in text
    assert 'moonbase_running{model="two"} 2.0' in text


def test_what_other_processes_counted_is_added() -> None:
    here, there = Metrics(lambda: [there.counts()]), Metrics()
    for metrics, seconds in ((here, 0.25), (there, 4.0)):
        metrics.response(200)
        metrics.gauge("moonbase_running", "Choices.", "one", lambda: 2)
        metrics.model("m").ended("stop", 5, 3, 1)
        metrics.model("m").inter_token.observe(seconds)
    there.model("only there").ended("length", 1, 0, 1)
    for _ in range(2):  # a scrape changes nothing
        lines = here.exposition().decode().splitlines()
    assert {
        'moonbase_http_responses_total{status="200"} 2.0',
        'moonbase_running{model="one"} 4.0',
        'moonbase_prompt_tokens_total{model="m"} 10.0',
        'moonbase_requests_total{model="m",outcome="stop"} 2.0',
        'moonbase_inter_token_seconds_sum{model="m"} 4.25',
        'moonbase_requests_total{model="only there",outcome="length"} 1.0',
    } <= set(lines)
