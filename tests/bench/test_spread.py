from __future__ import annotations

import pytest

from bench.spread import compare, plus_minus, show, spread


def test_percentiles() -> None:
    found = spread(list(range(101)))
    assert found == {"samples": 101, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}


def test_one_sample() -> None:
    found = spread([3.0])
    assert found == {"samples": 1, "p5": 3, "p25": 3, "p50": 3, "p75": 3, "p95": 3}


def test_a_ratio_is_of_the_medians_and_of_each_turn() -> None:
    found = compare({"a": [1, 20, 3], "b": [2, 40, 6]}, "ms", "b")
    assert found["ratio"]["a"]["medians"] == 0.5
    assert found["ratio"]["a"]["turns"]["p5"] == found["ratio"]["a"]["turns"]["p95"] == 0.5
    assert list(found["ratio"]) == ["a"]


def test_what_the_rest_is_held_to_may_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare({"a": [1, 2, 3]}, "ms", "b")
    assert found["ratio"] == {}
    show(found)
    assert "2.0 ms" in capsys.readouterr().out


def test_turns_that_are_missing_are_noticed() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare({"a": [1], "b": [1, 2]}, "ms", "b")


def test_spread_in_short() -> None:
    assert plus_minus(spread([90, 100, 110])) == "±5%"
