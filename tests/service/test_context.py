"""How much of a conversation fits the model."""

import pytest
import trio
from trio.testing import MockClock

from persona.errors import LLMUnavailable
from persona.service.context import (
    ASK_AGAIN_AFTER_S,
    ASK_AGAIN_UNKNOWN_AFTER_S,
    ASK_TIMEOUT_S,
    MAX_MODELS,
    MAX_RATIO,
    MIN_OBSERVED_TOKENS,
    MIN_RATIO,
    UNKNOWN_CONTEXT_TOKENS,
    ContextBudget,
)


class Model:
    """What a model server says of its context, and how often it was asked."""

    provider, model = "played", "default"

    def __init__(self, says: int | None = None) -> None:
        self.says = says
        self.fails = self.hangs = False
        self.asked: list[str] = []

    async def context_tokens(self, model: str) -> int | None:
        self.asked.append(model)
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.fails:
            raise LLMUnavailable("gone")
        return self.says


def budget(model: Model, configured_tokens: int = 0) -> ContextBudget:
    return ContextBudget(model, configured_tokens=configured_tokens)  # type: ignore[arg-type]


async def test_what_is_set_is_not_asked_for() -> None:
    model = Model(says=8192)
    assert await budget(model, 2048).prompt_tokens(None, answer_tokens=500) == 1548
    assert model.asked == []


async def test_the_model_server_knows_best(autojump_clock: MockClock) -> None:
    model = Model(says=8192)
    there = budget(model)
    assert await there.prompt_tokens(None, answer_tokens=500) == 7692
    model.says = 16384
    assert await there.prompt_tokens(None, answer_tokens=500) == 7692
    await trio.sleep(ASK_AGAIN_AFTER_S)
    assert await there.prompt_tokens(None, answer_tokens=500) == 15884
    assert await there.prompt_tokens("other", answer_tokens=500) == 15884
    assert model.asked == ["", "", "other"]


async def test_what_is_not_known_is_asked_for_again_soon(autojump_clock: MockClock) -> None:
    """A model that is not loaded yet has no context."""
    model = Model()
    there = budget(model)
    for _ in range(3):
        assert await there.prompt_tokens(None, answer_tokens=96) == UNKNOWN_CONTEXT_TOKENS - 96
    assert len(model.asked) == 1
    await trio.sleep(ASK_AGAIN_UNKNOWN_AFTER_S)
    model.says = 8192
    assert await there.prompt_tokens(None, answer_tokens=96) == 8096


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
async def test_a_server_in_trouble_costs_a_second_and_no_turn(
    trouble: str, autojump_clock: MockClock
) -> None:
    model = Model(says=8192)
    there = budget(model)
    setattr(model, trouble, True)
    started_at = trio.current_time()
    assert await there.prompt_tokens(None, answer_tokens=96) == 4000
    assert trio.current_time() - started_at <= ASK_TIMEOUT_S


async def test_a_crowd_asks_once(autojump_clock: MockClock) -> None:
    model = Model(says=8192)
    there = budget(model)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(lambda: there.prompt_tokens(None, answer_tokens=1))
    assert len(model.asked) == 1


async def test_a_long_answer_leaves_room_to_be_asked_for() -> None:
    assert await budget(Model(), 4096).prompt_tokens(None, answer_tokens=32768) == 1024


async def test_the_servers_counts_correct_our_estimate() -> None:
    there = budget(Model(), 4000)
    there.observe(None, estimated_tokens=1000, counted_tokens=1250)
    assert await there.prompt_tokens(None, answer_tokens=2000) == 1600
    for _ in range(50):
        there.observe(None, estimated_tokens=1000, counted_tokens=2000)
    assert await there.prompt_tokens(None, answer_tokens=2000) == pytest.approx(1000, abs=1)
    # Another model counts in its own way.
    assert await there.prompt_tokens("other", answer_tokens=2000) == 2000


@pytest.mark.parametrize(("counted", "scale"), [(1, 1), (799, 1), (999, 1), (10**9, MAX_RATIO)])
async def test_a_count_beyond_belief_does_little_harm(counted: int, scale: float) -> None:
    there = budget(Model(), 4000)
    there.observe(None, estimated_tokens=1000, counted_tokens=counted)
    assert await there.prompt_tokens(None, answer_tokens=2000) == 2000 / scale


async def test_of_a_server_that_counts_only_what_is_new_nothing_is_learned() -> None:
    there = budget(Model(), 4000)
    there.observe(None, estimated_tokens=1000, counted_tokens=2000)
    for share in (0.0, 0.3, MIN_RATIO - 0.01):
        there.observe(None, estimated_tokens=1000, counted_tokens=int(1000 * share))
    assert await there.prompt_tokens(None, answer_tokens=2000) == 1000
    for _ in range(50):
        there.observe(None, estimated_tokens=1000, counted_tokens=int(1000 * MIN_RATIO))
    assert await there.prompt_tokens(None, answer_tokens=2000) == pytest.approx(2000, abs=1)


@pytest.mark.parametrize(
    ("estimated", "counted"), [(MIN_OBSERVED_TOKENS - 1, 500), (1000, None), (1000, 0), (0, 5)]
)
async def test_what_tells_nothing_is_not_learned_from(estimated: int, counted: int | None) -> None:
    there = budget(Model(), 4000)
    there.observe(None, estimated_tokens=estimated, counted_tokens=counted)
    assert await there.prompt_tokens(None, answer_tokens=2000) == 2000


async def test_only_so_many_models_are_remembered() -> None:
    there = budget(Model(), 4000)
    for number in range(MAX_MODELS + 1):
        there.observe(f"m{number}", estimated_tokens=1000, counted_tokens=2000)
    assert await there.prompt_tokens("m1", answer_tokens=2000) == 1000
    assert await there.prompt_tokens("m0", answer_tokens=2000) == 2000
