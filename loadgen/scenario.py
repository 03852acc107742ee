"""A scenario: who does what, in which stages, and what must hold in the end."""

import importlib
import importlib.util
import math
import pkgutil
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import attrs

from loadgen import scenarios
from loadgen.script import Call, Script, Stream, User
from persona.config import declared

Arrivals = Literal["poisson", "constant"]
Request = Callable[[User, int], Call | Stream]


class ScenarioError(Exception):
    """There is no such scenario, or it cannot be run so, or what it says in the run is a mistake. The message
    is for people."""


def mistake(what: str, exc: BaseException) -> ScenarioError:
    """What a scenario's own code raised, with the place, for who wrote it."""
    _, *inside = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in inside if frame.filename == inside[0].filename]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return ScenarioError(f"{what}: {type(exc).__name__}: {exc}{place}")


_is_number: Any = [attrs.validators.ge(0), attrs.validators.lt(math.inf)]
_is_callable = attrs.validators.optional(attrs.validators.is_callable())


@attrs.frozen(kw_only=True)
class Stage:
    """A stretch of a run."""

    seconds: float = attrs.field(validator=attrs.validators.gt(0))
    connections: int = attrs.field(validator=[attrs.validators.instance_of(int), attrs.validators.ge(0)])
    rate: float | None = attrs.field(default=None, validator=attrs.validators.optional(_is_number))
    """Requests a second that arrive whatever becomes of those before (open model); `None`: none do."""
    name: str = ""

    def __attrs_post_init__(self) -> None:
        if self.rate and not self.connections:
            raise ValueError(f"a rate of {self.rate:g} needs connections to arrive on")


@attrs.frozen
class Threshold:
    """What must hold of one of the run's figures, such as `response.p99_ms`, or of its ratio to another one.
    A figure that there is not fails it."""

    figure: str
    at_most: float | None = None
    at_least: float | None = None
    relative_to: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.at_most is None and self.at_least is None:
            raise ValueError(f"a threshold of {self.figure} needs `at_most` or `at_least`")

    def verdict(self, figures: Mapping[str, float]) -> tuple[bool, str]:
        """Whether it holds, and a line that says so."""
        name = self.figure + (f" / {self.relative_to}" if self.relative_to else "")
        wanted = " and ".join(
            f"{word} {bound:g}"
            for word, bound in (("at most", self.at_most), ("at least", self.at_least))
            if bound is not None
        )
        value = self._value(figures)
        if value is None:
            return False, f"{name}: there is no such figure; wanted {wanted}"
        holds = (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )
        return holds, f"{name} is {value:g}; wanted {wanted}"

    def _value(self, figures: Mapping[str, float]) -> float | None:
        value = figures.get(self.figure)
        if self.relative_to is None or value is None:
            return value
        base = figures.get(self.relative_to)
        return value / base if base else None


NO_ERRORS = Threshold("errors", at_most=0)


def _tuple_of(kind: type) -> Any:
    return attrs.validators.deep_iterable(
        attrs.validators.instance_of(kind), attrs.validators.instance_of(tuple)
    )


@attrs.frozen(kw_only=True)
class Scenario:
    """What `loadgen run` runs. A file of one's own holds one of these under the name `SCENARIO`."""

    name: str = attrs.field(validator=attrs.validators.matches_re(r"[\w-][\w .-]{0,99}"))
    """The names of its files begin with it."""
    summary: str
    """One line, for `loadgen list`."""
    stages: tuple[Stage, ...] = attrs.field(validator=_tuple_of(Stage))
    user: Callable[[User], Script] | None = attrs.field(default=None, validator=_is_callable)
    """What each user does by itself (closed model)."""
    request: Request | None = attrs.field(default=None, validator=_is_callable)
    """The `n`-th request. Arrivals send it; with no rate and no `user`, each user sends one after another."""
    set_up: Callable[[User], Script] | None = attrs.field(default=None, validator=_is_callable)
    """What a new connection does before it counts as there. Not in the figures, but for its errors."""
    arrivals: Arrivals = attrs.field(
        default="poisson", validator=attrs.validators.in_(("poisson", "constant"))
    )
    warm_up_s: float = attrs.field(default=2.0, validator=_is_number)
    """So long from the start, requests are made and checked but not measured."""
    rate_by_connection: bool = True
    """Whether so many more connections ask so much more, where `--connections` says how many and nothing says
    how much. Not where they are the audience."""
    connecting: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    """Handshakes under way at once."""
    reconnect_s: float | None = attrs.field(default=None, validator=attrs.validators.optional(_is_number))
    """Who was refused, or lost its connection, comes back after so long. `None`: it does not."""
    expected: frozenset[str] = attrs.field(
        default=frozenset(), validator=attrs.validators.instance_of((frozenset, set))
    )
    """Kinds of errors that the scenario provokes on purpose. They are counted, but apart from `errors`."""
    server: Mapping[str, object] = attrs.field(factory=dict, validator=attrs.validators.instance_of(dict))
    """Settings of a server of its own, by name: `{"llm.scripted_tokens_per_s": 0}`."""
    thresholds: tuple[Threshold, ...] = attrs.field(default=(NO_ERRORS,), validator=_tuple_of(Threshold))

    @property
    def seconds(self) -> float:
        """Of all stages; the warm-up is in it."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def is_open(self) -> bool:
        """Whether requests arrive at a rate."""
        return any(stage.rate is not None for stage in self.stages)

    def fitted(
        self,
        *,
        connections: int | None = None,
        seconds: float | None = None,
        rate: float | None = None,
        warm_up_s: float | None = None,
        arrivals: Arrivals | None = None,
    ) -> "Scenario":
        """The same, made larger or smaller: the highest stage has `connections` and `rate`, all of them
        together take `seconds`, and the others keep their share. A `rate` makes a closed model open: users
        hold their connections, and do nothing by themselves. Raises `ScenarioError`."""
        if rate is not None and self.request is None:
            raise ScenarioError(f"{self.name} is a closed model only: its users decide when to ask")
        highest = max(stage.connections for stage in self.stages)
        highest_rate = max((stage.rate or 0.0 for stage in self.stages), default=0.0)
        wanted_rate = rate
        if rate is None and connections is not None and self.is_open and self.rate_by_connection:
            wanted_rate = highest_rate * connections / max(1, highest)
        stages = tuple(
            attrs.evolve(
                stage,
                seconds=stage.seconds * (1.0 if seconds is None else seconds / self.seconds),
                connections=_scaled(stage.connections, highest, connections),
                rate=_scaled_rate(stage, highest_rate, wanted_rate),
            )
            for stage in self.stages
        )
        user = None if rate is not None and not self.is_open else self.user
        changed = attrs.evolve(self, stages=stages, arrivals=arrivals or self.arrivals, user=user)
        # A short run is not all warm-up.
        if warm_up_s is None:
            warm_up_s = min(self.warm_up_s, changed.seconds / 4, stages[0].seconds / 2)
        if warm_up_s >= changed.seconds:
            raise ScenarioError(f"a warm-up of {warm_up_s:g} s leaves nothing of {changed.seconds:g} s")
        return attrs.evolve(changed, warm_up_s=warm_up_s)


def _scaled(value: int, highest: int, wanted: int | None) -> int:
    if wanted is None or not highest:
        return value
    return max(1, round(value * wanted / highest)) if value else 0


def _scaled_rate(stage: Stage, highest: float, wanted: float | None) -> float | None:
    if wanted is None or not stage.connections:
        return stage.rate
    if not highest:
        return wanted
    return None if stage.rate is None else wanted * stage.rate / highest


def scenario_names() -> list[str]:
    """Of the scenarios that come with loadgen."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(scenarios.__path__)]


def load_scenario(reference: str) -> Scenario:
    """A scenario by its name, or by the path of a Python file. Raises `ScenarioError`."""
    if reference in scenario_names():
        module = importlib.import_module(f"loadgen.scenarios.{reference.replace('-', '_')}")
    elif reference.endswith(".py"):
        module = _from_file(Path(reference))
    else:
        raise ScenarioError(
            f"no scenario {reference!r}; there are {', '.join(scenario_names())}, or the path of a .py file"
        )
    found: Any = getattr(module, "SCENARIO", None)
    if not isinstance(found, Scenario):
        raise ScenarioError(f"{reference} has no `SCENARIO = Scenario(...)`")
    if found.user is None and found.request is None:
        raise ScenarioError(f"{reference}: a scenario needs a `user` or a `request`")
    if not found.stages or (found.is_open and found.request is None):
        raise ScenarioError(f"{reference}: it needs a stage, and a `request` where a stage has a rate")
    _check_settings(reference, found.server)
    return found


def _check_settings(reference: str, settings: Mapping[str, object]) -> None:
    known = {setting.name: setting for setting in declared()}
    for name, value in settings.items():
        if name not in known:
            raise ScenarioError(f"{reference}: the server has no setting {name!r}")
        try:
            known[name].parsed(str(value))
        except ValueError as exc:
            raise ScenarioError(f"{reference}: {name} = {value} must be {exc}") from None


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loadgen_scenario_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ScenarioError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    # A user's file may fail in any way; the file and the error are named.
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as exc:
        # attrs says more than people want to read.
        text = exc.args[0] if isinstance(exc, TypeError | ValueError) and exc.args else exc
        raise ScenarioError(f"{path}: {type(exc).__name__}: {text}") from exc
    return module
