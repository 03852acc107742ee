"""Alerts: raised once, and cleared once, however often a figure crosses its threshold meanwhile.

An alert is raised when its figure was over the threshold in `raise_after` samples running, and cleared when
it was at or under `clear_below` in `clear_after` samples running. Between the two nothing changes: that gap
is what keeps an alert from flapping. A figure that is not known counts as calm: where nobody asks, nobody is
answered late.
"""

from collections.abc import Mapping

import attrs

CALM = 0.8
"""The share of its threshold to which an alert's figure has to fall before it is cleared."""
CALM_SAMPLES = 10
"""And stay there for so many samples, of a second each."""


@attrs.frozen(kw_only=True)
class AlertRule:
    """When to raise and to clear one alert; `text` says in one sentence what it means."""

    name: str
    text: str
    threshold: float
    raise_after: int = 1
    clear_after: int = CALM_SAMPLES
    calm: float = CALM

    @property
    def clear_below(self) -> float:
        """See the module's text."""
        return self.threshold * self.calm


@attrs.frozen(kw_only=True)
class Alert:
    """A raised one. `since` is Unix time."""

    rule: AlertRule
    since: float
    value: float


@attrs.define
class _Watched:
    rule: AlertRule
    over: int = 0
    calm: int = 0
    alert: Alert | None = None

    def look(self, value: float | None, now: float) -> bool:
        """Whether it was raised or cleared by this."""
        rule = self.rule
        self.over = self.over + 1 if value is not None and value > rule.threshold else 0
        self.calm = self.calm + 1 if value is None or value <= rule.clear_below else 0
        if self.alert is None:
            if value is None or self.over < rule.raise_after:
                return False
            self.alert = Alert(rule=rule, since=now, value=value)
            return True
        if self.calm >= rule.clear_after:
            self.alert = None
            return True
        if value is not None:
            self.alert = attrs.evolve(self.alert, value=value)
        return False


@attrs.frozen(kw_only=True)
class Change:
    """An alert that was raised or cleared, with the figure that did it."""

    rule: AlertRule
    is_raised: bool
    value: float | None


class Alerts:
    """All of them. Rules with a threshold of 0 or less are off."""

    def __init__(self, rules: tuple[AlertRule, ...]) -> None:
        self._watched = [_Watched(rule) for rule in rules if rule.threshold > 0]

    @property
    def names(self) -> list[str]:
        """The alerts there can be."""
        return [each.rule.name for each in self._watched]

    @property
    def raised(self) -> list[Alert]:
        """Those that are raised now."""
        return [each.alert for each in self._watched if each.alert is not None]

    def look(self, values: Mapping[str, float | None], now: float) -> list[Change]:
        """Take in one sample, by the rules' names; what changed."""
        return [
            Change(rule=each.rule, is_raised=each.alert is not None, value=values[each.rule.name])
            for each in self._watched
            if each.look(values[each.rule.name], now)
        ]
