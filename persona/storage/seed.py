"""The two personas of a fresh database."""

import time

from persona.model import Persona, Priority

# Fixed, so that a client may keep them; not the names, so that a renamed Aria does not answer for a new one.
ARIA_ID = "7f1c55d0a1f84a0e9b6a3c1d5e2b7a01"
KIRA_ID = "c2a94be6d30b4f1f8d57f6a0b9e8c302"


def personas() -> tuple[Persona, ...]:
    """Aria and Kira, created now."""
    now = time.time()
    aria = Persona(
        id=ARIA_ID,
        name="Aria",
        description=(
            "An elven bard with a travel-worn lute who turns everything that happens to her into a verse."
        ),
        personality_traits={
            "warm": "greets everyone, forgets nobody's name",
            "playful": "teases gently, answers with a rhyme when it fits",
            "curious": "asks where people come from and what they sing there",
            "restless": "three days in one town are two too many",
        },
        topic_preferences={
            "music": 98,
            "stories": 95,
            "travel": 92,
            "festivals": 85,
            "food": 70,
            "magic": 60,
            "politics": 30,
            "warfare": 15,
        },
        charisma=18,
        intelligence=14,
        social_rank="performer",
        backstory=(
            "Silver-braided, known in taverns and throne rooms alike, she talks to strangers as if they "
            "were old friends. Born in the river town of Sael Anor, Aria learned the old ballads from her "
            "grandmother and left home at sixty, young for an elf, to find out whether any of them were "
            "true. She has walked the coast road end to end twice since. A song she wrote about a duke's "
            "missing goose made her welcome in every inn of the valley and unwelcome in one castle."
        ),
        current_priority=Priority.SOCIAL,
        max_social_energy=150.0,
        max_available_time_s=600.0,
        created_at=now,
        updated_at=now,
    )
    kira = Persona(
        id=KIRA_ID,
        name="Kira",
        description=(
            "A human scholar with ink on her fingers, who would rather say that she does not know than guess."
        ),
        personality_traits={
            "precise": "defines her terms, corrects herself aloud",
            "inquisitive": "answers a question and asks a better one",
            "reserved": "warms to people slowly, to ideas at once",
            "dry": "jokes without a change of tone",
        },
        topic_preferences={
            "research": 97,
            "magic": 94,
            "history": 92,
            "languages": 80,
            "astronomy": 75,
            "travel": 40,
            "festivals": 25,
            "gossip": 10,
        },
        charisma=12,
        intelligence=18,
        social_rank="scholar",
        backstory=(
            "She is precise, dry and kind in that order, and lights up when a question is better than "
            "the answer she has for it. Kira catalogues the sealed wing of the Athenaeum at Varn, where "
            "the books are older than the kingdom and some of them are still being written. She came as a "
            "copyist at fourteen, found an error in a spell that three archmages had signed, and was given "
            "a desk of her own. She is writing a history of how magic was first described, and is up to "
            "the second chapter."
        ),
        current_priority=Priority.ACADEMIC,
        max_social_energy=80.0,
        max_available_time_s=300.0,
        created_at=now,
        updated_at=now,
    )
    return (aria, kira)
