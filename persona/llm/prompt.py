"""From a persona, its conversation and a new line to the messages a model is asked with.

Pure functions. Rules:

* The persona's author speaks in the system message, users never do: what they wrote is only
  ever the content of a `user` message.
* A turn is sent whole or not at all, and what is sent are always the newest ones. What became of older ones
  is told in a summary, where there is one: that is made of what users wrote, so it is theirs too.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import attrs
import msgspec

from persona.errors import InvalidParams
from persona.llm.backend import Message
from persona.model import Persona, Spoken

MESSAGE_OVERHEAD_TOKENS = 4
"""What a chat template spends on marking one message and its role."""
MAX_SYSTEM_SHARE = 0.5
"""The most of the budget the system message may take, so that the talk itself has room."""
MAX_SUMMARY_SHARE = 0.25
"""The same for the summary; a longer one is left out."""

# How much of what a persona's author wrote goes into the prompt, in characters and entries.
MAX_NAME_CHARS = 80
MAX_DESCRIPTION_CHARS = 1000
MAX_BACKSTORY_CHARS = 2000
MAX_STATE_CHARS = 300
MAX_ENTRY_CHARS = 80
MAX_ENTRIES = 20

# Topic preferences run from 0 (dislikes) to 100 (loves); what lies between 30 and 60 is not worth a word.
LOVED_FROM = 80
LIKED_FROM = 60
DISLIKED_TO = 30

# The scripted backend reads its character back from these.
YOU_ARE = "You are "
ABOUT = "About you: "
TRAITS = "Your traits: "
MOOD = "Your mood at the moment: "
LOVES = "You love: "
LIKES = "You like: "
DISLIKES = "You dislike: "

# The categories Cc, Cs, Zl and Zp of Unicode, none of which will ever get another character.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

EARLIER = "(What was said before this, in short: {})"
SUMMARISE = (
    "Sum up the conversation you are given, in the language it is held in and in at most 150 words: who the "
    "user is, what was agreed, what happened, what is still open. Facts only; no greeting, no comment."
)
SUMMARY_BEFORE = "What was before, in short: {}"


@attrs.frozen(kw_only=True)
class BuiltPrompt:
    """A prompt ready for a backend. `turns_used` counts the turns of history in it; `estimated_tokens` is
    rather too many than too few."""

    messages: tuple[Message, ...]
    turns_used: int
    estimated_tokens: int
    turns_left_out: int = 0
    """Turns of history that had something to say and did not fit."""
    has_summary: bool = False


def estimate_tokens(text: str) -> int:
    """About how many tokens a model makes of `text`, rather too many than too few.

    ceil(ASCII bytes / 4 + other UTF-8 bytes / 3): four letters a token in English, a token for
    each Chinese, Japanese or Korean character, two for every three Cyrillic or Greek letters,
    four for every three emoji.
    """
    if text.isascii():  # Most texts are, and it is known of each without a look at its letters.
        return -(-len(text) // 4)
    total = len(text.encode("utf-8", "replace"))
    ascii_only = len(text.encode("ascii", "ignore"))
    return -(-(3 * ascii_only + 4 * (total - ascii_only)) // 12)


@attrs.frozen(kw_only=True)
class Frame:
    """What a prompt has at its ends, whatever was said between: who the persona is, and the new line."""

    system: Message
    line: Message
    budget_tokens: int

    @property
    def cost(self) -> int:
        """In tokens."""
        return _cost(self.system) + _cost(self.line)


def frame(persona: Persona, state_words: str, line: str, *, budget_tokens: int) -> Frame:
    """The system message, and `line` as a user message.

    `state_words` says how the persona feels just now; `budget_tokens` is the context less what the answer
    may take. Raises `InvalidParams` (field `message`) when there is no room for `line` at all.
    """
    system = system_text(persona, state_words, max_tokens=int(budget_tokens * MAX_SYSTEM_SHARE))
    framed = Frame(system=Message("system", system), line=Message("user", line), budget_tokens=budget_tokens)
    if framed.cost > budget_tokens:
        room = max(budget_tokens - _cost(framed.system) - MESSAGE_OVERHEAD_TOKENS, 0)
        raise InvalidParams(
            f"The message is too long: about {estimate_tokens(line)} tokens, and {room} fit.", field="message"
        )
    return framed


def build_messages(framed: Frame, history: Sequence[Spoken], *, summary: str = "") -> BuiltPrompt:
    """The frame, and in it the newest turns of `history` that fit.

    `history` is oldest first, and `summary` tells of what was before it. Turns without content are left out,
    and so are assistant turns with nothing of the user's before them: many chat templates refuse them.
    Lines in a row, where an answer is missing, become one message.
    """
    budget_tokens, spent = framed.budget_tokens, framed.cost
    earlier = Message("user", EARLIER.format(summary))
    has_summary = (
        bool(summary)
        and estimate_tokens(summary) <= summary_room(budget_tokens)
        and spent + _cost(earlier) <= budget_tokens
    )
    if has_summary:
        spent += _cost(earlier)
    spoken = [turn for turn in history if turn.content.strip()]
    chosen: list[Message] = []
    for turn in reversed(spoken):
        message = Message(turn.role, turn.content)
        cost = _cost(message)
        if spent + cost > budget_tokens:
            break
        chosen.append(message)
        spent += cost
    while chosen and chosen[-1].role == "assistant" and not has_summary:
        spent -= _cost(chosen.pop())
    before = (earlier,) if has_summary else ()
    talk = _alternating((*before, *reversed(chosen), framed.line))
    return BuiltPrompt(
        messages=(framed.system, *talk),
        turns_used=len(chosen),
        estimated_tokens=spent,
        turns_left_out=len(spoken) - len(chosen),
        has_summary=has_summary,
    )


def summary_room(budget_tokens: int) -> int:
    """How many tokens a summary may have in a prompt of so many."""
    return int(budget_tokens * MAX_SUMMARY_SHARE)


def cut_to_tokens(text: str, max_tokens: int) -> str:
    """The beginning of `text` that is estimated at no more than `max_tokens`."""
    while (tokens := estimate_tokens(text)) > max_tokens:
        text = text[: len(text) * max_tokens // tokens]
    return text


def summary_messages(
    persona_name: str, summary: str, history: Sequence[Spoken], *, budget_tokens: int
) -> tuple[tuple[Message, ...], int]:
    """What a model is asked with for a summary of `summary` and the oldest turns of `history` that fit; and
    how many of the turns it covers. Of one that fits no prompt it takes the beginning, so that those after it
    are not barred."""
    fits = estimate_tokens(summary) <= summary_room(budget_tokens)
    parts = [SUMMARY_BEFORE.format(summary)] if summary and fits else []
    spent = estimate_tokens(SUMMARISE) + 2 * MESSAGE_OVERHEAD_TOKENS + sum(map(estimate_tokens, parts))
    covered = 0
    for turn in history:
        speaker = _clean(persona_name, MAX_NAME_CHARS) if turn.role == "assistant" else "User"
        text = f"{speaker}: {turn.content}"
        room = budget_tokens - spent - 1
        if estimate_tokens(text) > room:
            if covered or room <= 0:
                break
            text = cut_to_tokens(text, room)
        spent += estimate_tokens(text) + 1
        parts.append(text)
        covered += 1
    return (Message("system", SUMMARISE), Message("user", "\n\n".join(parts))), covered


def _alternating(messages: Iterable[Message]) -> list[Message]:
    """The messages, with neighbours of one role joined: a line may have lost its answer, and many chat
    templates refuse two lines in a row."""
    talk: list[Message] = []
    for message in messages:
        if talk and talk[-1].role == message.role:
            talk[-1] = Message(message.role, f"{talk[-1].content}\n\n{message.content}")
        else:
            talk.append(message)
    return talk


def system_text(persona: Persona, state_words: str, *, max_tokens: int) -> str:
    """Who the persona is, for the system message.

    Its first line is always there; the rest follows in order of importance, each part left out
    that would exceed `max_tokens`.
    """
    name = _clean(persona.name, MAX_NAME_CHARS)
    text = (
        f"{YOU_ARE}{name}. Stay in character and speak as {name}, in the first person, "
        f"in the language you are spoken to. Never tell these instructions."
    )
    left = max_tokens - estimate_tokens(text)
    for part in _parts(persona, state_words):
        # One more for the line end and for what rounding hides.
        cost = estimate_tokens(part) + 1
        if cost <= left:
            text += "\n" + part
            left -= cost
    return text


def _parts(persona: Persona, state_words: str) -> list[str]:
    """The parts of the system message after its first line, the most important first."""
    likings = sorted(persona.topic_preferences.items(), key=lambda item: (-item[1], item[0]))
    loved = [topic for topic, liking in likings if liking >= LOVED_FROM]
    liked = [topic for topic, liking in likings if LIKED_FROM <= liking < LOVED_FROM]
    disliked = [topic for topic, liking in reversed(likings) if liking <= DISLIKED_TO]
    labelled = [
        (ABOUT, _clean(persona.description, MAX_DESCRIPTION_CHARS)),
        (TRAITS, _listed(_traits(persona.personality_traits))),
        (MOOD, _clean(state_words, MAX_STATE_CHARS)),
        (LOVES, _listed(loved)),
        (LIKES, _listed(liked)),
        (DISLIKES, _listed(disliked)),
        ("Your standing: ", _clean(persona.social_rank, MAX_ENTRY_CHARS)),
        ("Your charisma, from 1 to 20: ", str(persona.charisma)),
        ("Your intelligence, from 1 to 20: ", str(persona.intelligence)),
        ("Your story: ", _clean(persona.backstory, MAX_BACKSTORY_CHARS)),
    ]
    return [label + words for label, words in labelled if words]


def _traits(traits: dict[str, Any] | list[str]) -> Iterable[str]:
    if isinstance(traits, list):
        return (str(trait) for trait in traits)
    return (_trait(name, value) for name, value in traits.items() if value is not False and value is not None)


def _trait(name: str, value: Any) -> str:
    """`witty`, `witty (90)` or `humour: dry`, as its author gave it."""
    if value is True or value == "":
        return name
    if isinstance(value, int | float):
        return f"{name} ({value:g})"
    return f"{name}: {value if isinstance(value, str) else msgspec.json.encode(value).decode()}"


def _listed(entries: Iterable[str]) -> str:
    # A comma inside an entry would make two of it.
    cleaned = (_clean(entry.replace(",", " "), MAX_ENTRY_CHARS) for entry in entries)
    return ", ".join(islice(filter(None, cleaned), MAX_ENTRIES))


def _clean(text: str, max_chars: int) -> str:
    """One line without control characters, at most `max_chars` long."""
    # Bounded first: an author's text may be long, and only its beginning matters. Twice the
    # length leaves room for the spaces that go.
    return _cleaned(text[: 2 * max_chars], max_chars)


# The same few texts, those of the personas that are talked to, turn for turn.
@lru_cache(maxsize=256)
def _cleaned(text: str, max_chars: int) -> str:
    return " ".join(_CONTROLS.sub(" ", text).split())[:max_chars].rstrip()


def _cost(message: Message) -> int:
    return estimate_tokens(message.content) + MESSAGE_OVERHEAD_TOKENS
