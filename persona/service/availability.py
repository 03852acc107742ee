"""How a persona tires and recovers.

Every quantity is a function of the time that passed since the state was taken, so it does not
matter how often or in how many steps it is brought up to date:
`advance(advance(s, t1), t2) == advance(s, t2)`.

With `R` = `personas.recovery_s`, `dt` = seconds passed, cap = the persona's rested value:

* social energy and available time grow linearly: `min(cap, x + cap * dt / R)`;
* fatigue halves, and interest halves its distance to 50, every `R / 2` seconds.

A turn costs `0.2 + tokens / 1000` energy, the time it had the model in available time, and adds one
point of fatigue. Time that a turn waited is nobody's talk, and costs nothing. A persona whose energy
or time runs out rests for `R / 5` seconds; turns that were let in before it began to rest neither
lengthen the rest nor begin another, so a `retry_after_s` once given holds. One user alone never meets
this: a lone conversation spends at most one second a second, and available time comes back meanwhile,
at least that fast for every persona with a cap of `R` or more.
"""

import re

import attrs

from persona.errors import PersonaUnavailable
from persona.model import InteractionState, Persona

NEUTRAL_INTEREST = 50.0
ENERGY_PER_TURN = 0.2
ENERGY_PER_TOKEN = 0.001
MAX_FATIGUE = 100.0
REST_SHARE = 0.2


def rested(persona: Persona, now: float) -> InteractionState:
    """The state of a persona nobody has talked to yet."""
    return InteractionState(
        persona_id=persona.id,
        as_of=now,
        social_energy=persona.max_social_energy,
        available_time_s=persona.max_available_time_s,
    )


def advance(state: InteractionState, persona: Persona, *, now: float, recovery_s: float) -> InteractionState:
    """`state` as it is at `now`. `recovery_s` 0 means that personas never tire."""
    if recovery_s == 0:
        return rested(persona, now)
    # A wall clock may step back; time that did not pass gives nothing and takes nothing.
    passed = max(0.0, now - state.as_of)
    faded = 0.5 ** (passed / (recovery_s / 2))
    energy_cap, time_cap = persona.max_social_energy, persona.max_available_time_s
    return attrs.evolve(
        state,
        as_of=max(now, state.as_of),
        social_energy=min(energy_cap, state.social_energy + energy_cap * passed / recovery_s),
        available_time_s=min(time_cap, state.available_time_s + time_cap * passed / recovery_s),
        interaction_fatigue=state.interaction_fatigue * faded,
        interest_level=NEUTRAL_INTEREST + (state.interest_level - NEUTRAL_INTEREST) * faded,
    )


def after_turn(
    state: InteractionState,
    persona: Persona,
    *,
    now: float,
    line: str,
    tokens_used: int,
    took_s: float,
    talked_s: float,
    recovery_s: float,
) -> InteractionState:
    """`state` as it is at `now`, after one more turn about `line`, which was let in `took_s` ago and had the
    model for `talked_s`."""
    after = advance(state, persona, now=now, recovery_s=recovery_s)
    if recovery_s == 0:
        return attrs.evolve(after, interest_level=interest_in(persona, line))
    energy = max(0.0, after.social_energy - ENERGY_PER_TURN - ENERGY_PER_TOKEN * tokens_used)
    # It recovers while it talks. To charge the talk at its end would take from a rested persona, which has
    # nothing to recover, what one that is never rested keeps.
    before = advance(state, persona, now=now - talked_s, recovery_s=recovery_s)
    time_cap = persona.max_available_time_s
    gained_s = time_cap * (after.as_of - before.as_of) / recovery_s
    time_left = min(time_cap, max(0.0, before.available_time_s + gained_s - talked_s))
    rested_at = state.cooldown_until
    if (energy == 0 or time_left == 0) and (rested_at is None or now - took_s >= rested_at):
        rested_at = after.as_of + REST_SHARE * recovery_s
    return attrs.evolve(
        after,
        social_energy=energy,
        available_time_s=time_left,
        interaction_fatigue=min(MAX_FATIGUE, after.interaction_fatigue + 1),
        interest_level=(after.interest_level + interest_in(persona, line)) / 2,
        cooldown_until=rested_at,
    )


def interest_in(persona: Persona, line: str) -> float:
    """0 to 100: the mean liking of the topics that `line` names; 50 when it names none."""
    words = set(re.findall(r"\w+", line.casefold()))
    likings = [
        liking
        for topic, liking in persona.topic_preferences.items()
        if words.issuperset(re.findall(r"\w+", topic.casefold()))
    ]
    return sum(likings) / len(likings) if likings else NEUTRAL_INTEREST


def cooldown_remaining_s(state: InteractionState) -> float:
    """Seconds until an advanced state's persona is available again; 0 when it is."""
    return 0.0 if state.cooldown_until is None else max(0.0, state.cooldown_until - state.as_of)


def require_available(state: InteractionState, persona: Persona) -> None:
    """Raises `PersonaUnavailable` while an advanced state's persona rests."""
    remaining = cooldown_remaining_s(state)
    if remaining > 0:
        raise PersonaUnavailable(f"{persona.name} is resting", retry_after_s=remaining)


def continue_score(state: InteractionState, persona: Persona) -> float:
    """0 to 100: how much the persona wants to go on talking.

    40 points for the share of energy left, 20 for the share of time left, 30 for interest, 10
    for being fresh; 0 while it rests.
    """
    if cooldown_remaining_s(state) > 0:
        return 0.0
    energy = state.social_energy / persona.max_social_energy
    time_left = state.available_time_s / persona.max_available_time_s
    fresh = 1 - state.interaction_fatigue / MAX_FATIGUE
    return round(40 * energy + 20 * time_left + 0.3 * state.interest_level + 10 * fresh, 1)


def mood_words(state: InteractionState, persona: Persona) -> str:
    """The mood of the moment in words, for the prompt."""
    energy = state.social_energy / persona.max_social_energy
    spirits = "full of energy" if energy > 0.7 else "a little tired" if energy > 0.3 else "weary"
    if state.interest_level >= 70:
        return f"{spirits}, and drawn in by the subject"
    if state.interest_level <= 30:
        return f"{spirits}, and not fond of the subject"
    return spirits
