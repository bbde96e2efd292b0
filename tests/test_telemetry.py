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
