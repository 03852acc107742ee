"""A persona's energy, time and fatigue as functions of elapsed time."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.errors import PersonaUnavailable
from persona.model import InteractionState, Persona
from persona.service import availability as av

R = 300.0
KIRA = Persona(
    id="k",
    name="Kira",
    description="a scholar",
    topic_preferences={"magic": 90, "ancient history": 100, "gossip": 10},
    max_social_energy=80.0,
    max_available_time_s=300.0,
    created_at=0.0,
    updated_at=0.0,
)
seconds = st.floats(0, 10_000)


def states(now: float = 0.0) -> st.SearchStrategy[InteractionState]:
    return st.builds(
        InteractionState,
        persona_id=st.just("k"),
        as_of=st.just(now),
        social_energy=st.floats(0, 80),
        available_time_s=st.floats(0, 300),
        interaction_fatigue=st.floats(0, 100),
        interest_level=st.floats(0, 100),
        cooldown_until=st.none() | st.floats(0, 60),
    )


def turn(
    state: InteractionState,
    *,
    at: float | None = None,
    tokens: int = 0,
    took_s: float = 0.0,
    talked_s: float | None = None,
    line: str = "hm",
) -> InteractionState:
    """`at` is when it ends; it had the model all the time unless `talked_s` says less."""
    return av.after_turn(
        state,
        KIRA,
        now=state.as_of if at is None else at,
        line=line,
        tokens_used=tokens,
        took_s=took_s,
        talked_s=took_s if talked_s is None else talked_s,
        recovery_s=R,
    )


@given(states(), seconds, seconds)
def test_it_does_not_matter_in_how_many_steps_time_passes(
    state: InteractionState, first: float, second: float
) -> None:
    there = min(first, second), max(first, second)
    at_once = av.advance(state, KIRA, now=there[1], recovery_s=R)
    halfway = av.advance(state, KIRA, now=there[0], recovery_s=R)
    in_steps = av.advance(halfway, KIRA, now=there[1], recovery_s=R)
    for name in ("social_energy", "available_time_s", "interaction_fatigue", "interest_level"):
        assert getattr(in_steps, name) == pytest.approx(getattr(at_once, name), abs=1e-6)
    assert in_steps.cooldown_until == at_once.cooldown_until


@given(states())
def test_everything_recovers_with_time(state: InteractionState) -> None:
    later = av.advance(state, KIRA, now=R, recovery_s=R)
    assert later.social_energy == KIRA.max_social_energy
    assert later.available_time_s == KIRA.max_available_time_s
    assert later.interaction_fatigue == pytest.approx(state.interaction_fatigue / 4)
    assert av.cooldown_remaining_s(later) == 0


def test_a_wall_clock_that_steps_back_changes_nothing() -> None:
    state = turn(av.rested(KIRA, 1000.0), tokens=500)
    back = av.advance(state, KIRA, now=900.0, recovery_s=R)
    assert back.social_energy == state.social_energy
    assert back.as_of == 1000.0


def test_an_exhausted_persona_rests_and_keeps_its_word() -> None:
    state = turn(av.rested(KIRA, 0.0), tokens=1_000_000)
    with pytest.raises(PersonaUnavailable) as caught:
        av.require_available(state, KIRA)
    retry_after_s = caught.value.retry_after_s
    assert retry_after_s == R / 5
    # A turn that was under way does not lengthen the rest.
    meanwhile = turn(state, at=30.0, tokens=1_000_000)
    just_before = av.advance(meanwhile, KIRA, now=retry_after_s - 0.01, recovery_s=R)
    with pytest.raises(PersonaUnavailable):
        av.require_available(just_before, KIRA)
    av.require_available(av.advance(meanwhile, KIRA, now=retry_after_s, recovery_s=R), KIRA)


@given(st.floats(0, 200), st.floats(0, 100))
def test_a_turn_let_in_before_a_rest_begins_none_however_late_it_ends(late_s: float, before_s: float) -> None:
    state = turn(av.rested(KIRA, 0.0), tokens=1_000_000)
    rested_at = R / 5
    ends_at = rested_at + late_s
    state = turn(state, at=ends_at, tokens=1_000_000, took_s=ends_at + before_s)
    assert av.cooldown_remaining_s(state) == 0
    av.require_available(state, KIRA)
    # The next one that exhausts it does.
    exhausted = turn(state, at=ends_at + 1, tokens=1_000_000, took_s=0.5)
    assert av.cooldown_remaining_s(exhausted) == pytest.approx(R / 5)


def test_time_runs_out_as_energy_does() -> None:
    state = av.rested(KIRA, 0.0)
    for _ in range(4):  # four at once
        state = turn(state, at=100.0, took_s=100.0)
    assert av.cooldown_remaining_s(state) == R / 5
    assert av.continue_score(state, KIRA) == 0.0


@pytest.mark.parametrize("took_s", [5.0, 299.0, 300.0, 1000.0])
def test_a_lone_user_never_meets_it(took_s: float) -> None:
    state = av.rested(KIRA, 0.0)
    for number in range(20):
        state = turn(state, at=(number + 1) * took_s, tokens=200, took_s=took_s)
        av.require_available(state, KIRA)


def test_a_lone_user_who_asks_for_everything_at_once_does_not_meet_it_either() -> None:
    state = av.rested(KIRA, 0.0)
    for number in range(100):  # one after the other, each having waited for all those before
        state = turn(state, at=5.0 * (number + 1), tokens=200, took_s=5.0 * (number + 1), talked_s=5.0)
        av.require_available(state, KIRA)


def test_without_recovery_nobody_tires() -> None:
    state = av.rested(KIRA, 0.0)
    state = av.after_turn(
        state, KIRA, now=0.0, line="x", tokens_used=10**6, took_s=10**6, talked_s=10**6, recovery_s=0
    )
    av.require_available(state, KIRA)
    assert av.advance(state, KIRA, now=1.0, recovery_s=0).social_energy == 80.0


@pytest.mark.parametrize(
    ("line", "interest"),
    [
        ("Tell me of MAGIC!", 90),
        ("ancient history, and magic", 95),
        ("history", 50),
        ("gossip", 10),
        ("", 50),
    ],
)
def test_interest_is_the_mean_liking_of_the_topics_named(line: str, interest: float) -> None:
    assert av.interest_in(KIRA, line) == interest


def test_continue_score_moves_with_what_happened() -> None:
    rested = av.rested(KIRA, 0.0)
    assert av.continue_score(rested, KIRA) == 85.0
    keen = turn(rested, line="magic")
    bored = turn(rested, line="gossip")
    assert av.continue_score(bored, KIRA) < av.continue_score(rested, KIRA) < av.continue_score(keen, KIRA)


@pytest.mark.parametrize(
    ("energy", "interest", "words"),
    [
        (80, 50, "full of energy"),
        (40, 80, "a little tired, and drawn in by the subject"),
        (10, 20, "weary, and not fond of the subject"),
    ],
)
def test_mood_in_words(energy: float, interest: float, words: str) -> None:
    state = attrs.evolve(av.rested(KIRA, 0.0), social_energy=energy, interest_level=interest)
    assert av.mood_words(state, KIRA) == words
