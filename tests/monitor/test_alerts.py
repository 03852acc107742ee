"""Alerts are raised once and cleared once, and do not flap."""

import pytest

from persona.monitor.alerts import CALM_SAMPLES, AlertRule, Alerts

RULE = AlertRule(name="heat", text="It is hot.", threshold=10.0)


class Kitchen:
    """One alert; `told` is what was said of it, with the sample's number."""

    def __init__(self, rule: AlertRule = RULE) -> None:
        self.alerts = Alerts((rule,))
        self.name = rule.name
        self.samples = 0
        self.told: list[tuple[int, str]] = []

    def sees(self, *values: float | None) -> None:
        for value in values:
            for change in self.alerts.look({self.name: value}, now=self.samples):
                self.told.append((self.samples, "raised" if change.is_raised else "cleared"))
            self.samples += 1


def test_it_is_raised_once_and_cleared_once() -> None:
    kitchen = Kitchen()
    kitchen.sees(9, 11, 12, 13, *[8.0] * CALM_SAMPLES, 1, 1)
    assert kitchen.told == [(1, "raised"), (3 + CALM_SAMPLES, "cleared")]


def test_the_threshold_itself_is_no_alert() -> None:
    kitchen = Kitchen()
    kitchen.sees(10, 10, 10)
    assert kitchen.told == []


def test_what_goes_up_and_down_about_the_threshold_is_one_alert() -> None:
    kitchen = Kitchen()
    kitchen.sees(*[11, 7] * 50)
    assert kitchen.told == [(0, "raised")]
    # Between the threshold and calm it stays raised, however long.
    kitchen.sees(*[9] * 100)
    assert kitchen.told == [(0, "raised")]
    kitchen.sees(*[8] * CALM_SAMPLES)
    assert kitchen.told[1:] == [(199 + CALM_SAMPLES, "cleared")]


def test_a_moments_peak_is_none_where_it_has_to_last() -> None:
    kitchen = Kitchen(AlertRule(name="heat", text="", threshold=10, raise_after=3))
    kitchen.sees(11, 11, 9, 11, 11, 9)
    assert kitchen.told == []
    kitchen.sees(11, 11, 11)
    assert kitchen.told == [(8, "raised")]


def test_what_is_not_known_is_calm() -> None:
    kitchen = Kitchen()
    kitchen.sees(None, 11, *[None] * CALM_SAMPLES)
    assert kitchen.told == [(1, "raised"), (1 + CALM_SAMPLES, "cleared")]


def test_a_raised_one_shows_since_when_and_its_latest_figure() -> None:
    kitchen = Kitchen()
    kitchen.sees(1, 11, 15, None)
    (alert,) = kitchen.alerts.raised
    assert (alert.since, alert.value, alert.rule) == (1, 15, RULE)
    kitchen.sees(*[None] * CALM_SAMPLES)
    assert kitchen.alerts.raised == []


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_without_a_threshold_it_is_off(threshold: float) -> None:
    kitchen = Kitchen(AlertRule(name="heat", text="", threshold=threshold))
    kitchen.sees(1e9)
    assert (kitchen.told, kitchen.alerts.names) == ([], [])


def test_each_calms_at_its_own_mark() -> None:
    kitchen = Kitchen(AlertRule(name="heat", text="", threshold=100, calm=0.95, clear_after=1))
    kitchen.sees(101, 96, 95)
    assert kitchen.told == [(0, "raised"), (2, "cleared")]
