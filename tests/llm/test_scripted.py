import itertools
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from persona.errors import LLMUnavailable
from persona.llm.backend import Completed, GenerateOptions, Message
from persona.llm.prompt import frame
from persona.llm.script import quote, read_character
from persona.llm.scripted import BURST_TOKENS, PROMPTS, ScriptedBackend
from persona.model import Persona
from tests.llm.asking import ask

ARIA = Persona(
    id="aria",
    name="Aria",
    description="An elven bard.",
    personality_traits={"witty": 80, "humour": "dry"},
    topic_preferences={"music": 95, "stories": 90, "food": 65, "war": 5},
    created_at=0,
    updated_at=0,
)
SYSTEM = frame(ARIA, "rested", "x", budget_tokens=4000).system
KIRA = Message("system", "You are Kira, a scholar.\nBe brief.")
OPTIONS = GenerateOptions(max_tokens=500)


def quick(seed: int = 0) -> ScriptedBackend:
    return ScriptedBackend(seed=seed, first_token_s=0, tokens_per_s=0)


async def say(
    *lines: str, system: Message = SYSTEM, seed: int = 0, wanted_seed: int | None = None, **options: Any
) -> str:
    """The answer to the last of a user's lines."""
    messages = [system]
    for line in lines[:-1]:
        messages += [Message("user", line), Message("assistant", "So it is.")]
    wanted = GenerateOptions(max_tokens=500, seed=wanted_seed, **options)
    text, _ = await ask(quick(seed), (*messages, Message("user", lines[-1])), wanted)
    return text


def test_the_character_is_read_back_from_the_prompt() -> None:
    who = read_character(SYSTEM.content)
    assert (who.name, who.about, who.mood) == ("Aria", "An elven bard", "rested")
    assert (who.traits, who.loves, who.likes) == (("witty",), ("music", "stories"), ("food",))
    assert who.dislikes == ("war",)
    assert read_character(KIRA.content).name == "Kira"
    assert read_character("").name == "Someone"


async def test_says_what_it_is() -> None:
    backend = quick()
    assert (backend.provider, backend.model, await backend.models()) == (
        "scripted",
        "scripted",
        ("scripted",),
    )
    _, completed = await ask(backend, (SYSTEM, Message("user", "Hi")), OPTIONS)
    assert completed.model == "scripted"


@pytest.mark.parametrize(
    "question",
    [
        "Are you an AI?",
        "are you a real person",
        "Wait, are you human?",
        "You are just a bot, aren't you?",
        "Which model is this?",
        "Hello! What language model do I talk to?",
        "Are you ChatGPT?",
        "am I talking to a machine?",
    ],
)
async def test_asked_whether_it_is_an_ai_it_is_honest(question: str) -> None:
    for seed in range(5):
        answer = await say(question, seed=seed)
        assert "scripted stand-in" in answer
        assert "Aria" in answer or "language model" in answer


async def test_greets_by_name() -> None:
    assert "Aria" in await say("Hello there!")
    assert "Kira" in await say("Good morning", system=KIRA)


async def test_answers_by_topic() -> None:
    assert "music" in (await say("Do you enjoy MUSIC?")).lower()
    assert "stories" in (await say("Tell me a story, please")).lower()
    for seed in range(5):
        assert "war" in (await say("The war is coming.", seed=seed)).lower()


async def test_refers_to_an_earlier_line() -> None:
    assert "My cat is grey." in await say("My cat is grey.", "Do you remember what I said?")
    assert "My cat" not in await say("Do you remember what I said?")
    answers = [await say("My cat is grey.", "The rain falls.", seed=seed) for seed in range(30)]
    assert any("My cat is grey." in answer for answer in answers)


async def test_says_more_than_one_sentence() -> None:
    assert len({await say("The rain falls.", seed=seed) for seed in range(30)}) > 10
    assert len({await say(f"I saw {number} ships.") for number in range(30)}) > 20


@pytest.mark.parametrize("line", ["Sing!", "How are you?", "Are you an AI?"])
async def test_asked_again_it_says_something_else(line: str) -> None:
    async def answers(backend: ScriptedBackend, options: GenerateOptions) -> list[str]:
        return [(await ask(backend, (SYSTEM, Message("user", line)), options))[0] for _ in range(20)]

    said = await answers(quick(), OPTIONS)
    assert all(answer != before for before, answer in itertools.pairwise(said))
    # Whoever begins anew hears the same in the same order, and a seed of the request's own is its own word.
    assert await answers(quick(), OPTIONS) == said
    assert len(set(await answers(quick(), attrs.evolve(OPTIONS, seed=3)))) == 1


async def test_where_there_is_one_thing_to_say_it_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona.llm.scripted.compose", lambda messages, dice: "Always this.")
    backend = quick()
    for _ in range(3):
        assert (await ask(backend, (SYSTEM, Message("user", "Hi")), OPTIONS))[0] == "Always this."


async def test_only_so_many_prompts_are_remembered() -> None:
    async def answer(line: str) -> str:
        return (await ask(backend, (SYSTEM, Message("user", line)), OPTIONS))[0]

    backend = quick()
    first = await answer("Sing!")
    for number in range(PROMPTS - 1):
        await answer(f"I saw {number} ships.")
    again = await answer("Sing!")
    assert again != first
    # Asked for just now, it is the last to be forgotten.
    for number in range(PROMPTS - 1):
        await answer(f"I saw {number} birds.")
    assert await answer("Sing!") not in (first, again)
    for number in range(PROMPTS):
        await answer(f"I saw {number} trees.")
    assert await answer("Sing!") == first


async def test_is_deterministic_for_seed_and_messages() -> None:
    lines = ("Hello", "What is the name of the moon?")
    assert await say(*lines, seed=1) == await say(*lines, seed=1)
    # Other processes and Python versions agree.
    assert await say("The rain falls.", system=KIRA, seed=7) == (
        '"The rain falls.", you say. Tell me more of it. Go on, I have time.'
    )
    # The request's seed goes before the backend's.
    assert await say(*lines, seed=1, wanted_seed=5) == await say(*lines, seed=2, wanted_seed=5)
    assert len({await say(*lines, seed=seed) for seed in range(20)}) > 5


@pytest.mark.parametrize("line", ["", " \n", "{name} {0} %s", "海" * 5000, '"', "\x00", "a" * 100_000])
async def test_any_line_has_an_answer(line: str) -> None:
    answer = await say(line)
    assert answer
    assert len(answer) < 500


async def test_any_messages_have_an_answer() -> None:
    assert (await ask(quick(), (), OPTIONS))[0]
    assert (await ask(quick(), (Message("assistant", "Hm."),), OPTIONS))[0]


def test_quotes_are_short_and_whole_words() -> None:
    assert quote('say  "hi"\nyou') == "say 'hi' you"
    assert quote("word " * 50) == "word " * 11 + "word…"


async def test_the_limit_and_the_counts() -> None:
    messages = (SYSTEM, Message("user", "Hello"))
    whole, completed = await ask(quick(), messages, OPTIONS)
    assert completed.finish_reason == "stop"
    assert completed.completion_tokens == len(whole.split())
    assert completed.prompt_tokens is not None
    assert completed.prompt_tokens > 20
    for limit in (0, 1, completed.completion_tokens - 1):
        text, short = await ask(quick(), messages, GenerateOptions(max_tokens=limit))
        assert whole.startswith(text)
        assert (short.finish_reason, short.completion_tokens) == ("length", limit)
        assert len(text.split()) == limit


async def test_stop_sequences_end_the_answer_before_them() -> None:
    whole = await say("Hello")
    words = whole.split()
    stopped = await say("Hello", stop=("", "not in it", words[3], words[2]))
    assert stopped == whole[: min(whole.index(words[2]), whole.index(words[3]))]
    assert await say("Hello", stop=(whole,)) == ""


async def test_another_model_is_refused() -> None:
    with pytest.raises(LLMUnavailable, match="scripted"):
        await say("Hello", model="llama3")
    assert await say("Hello", model="scripted")


async def test_the_pace_does_not_drift(autojump_clock: trio.testing.MockClock) -> None:
    backend = ScriptedBackend(seed=0, first_token_s=2.0, tokens_per_s=10.0)
    start = trio.current_time()
    number = 0
    async with backend.generate((SYSTEM, Message("user", "Hello")), OPTIONS) as events:
        async for event in events:
            due = start + 2.0 + number * 0.1
            if isinstance(event, Completed):
                break
            if number != 4:
                assert trio.current_time() == pytest.approx(due)
            if number == 3:
                await trio.sleep(0.15)  # a slow reader misses one date and no more
            number += 1
    assert number > 6


async def test_no_delay_still_lets_others_run() -> None:
    turns = 0

    async def run() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        line = Message("user", "Tell me about music and the sea")
        text, completed = await ask(quick(), (SYSTEM, line), OPTIONS)
        seen = turns
        nursery.cancel_scope.cancel()
    tokens = completed.completion_tokens
    assert tokens is not None
    assert tokens > BURST_TOKENS, text
    assert seen >= tokens // BURST_TOKENS


async def test_cancelling_is_prompt(autojump_clock: trio.testing.MockClock) -> None:
    backend = ScriptedBackend(seed=0, first_token_s=50.0, tokens_per_s=1.0)
    with trio.move_on_after(51.5) as scope:
        await ask(backend, (SYSTEM, Message("user", "Hello")), OPTIONS)
    assert scope.cancelled_caught
    assert trio.current_time() == 51.5
