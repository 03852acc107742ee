"""What the scripted stand-in says. Pure functions of a character, what was said, and a dice.

It reads the character from the system message `prompt` writes, finds out roughly what the last
line wants, and fills one of several sentences. It never claims to understand: asked what it is,
it says so.
"""

import random
import re
from collections.abc import Sequence
from functools import lru_cache

import attrs

from persona.llm import prompt
from persona.llm.backend import Message

MAX_QUOTE_CHARS = 60
MAX_READ_CHARS = 2000
"""Of a line; a script finds nothing more in the rest, and the patterns stay cheap."""


@attrs.frozen(kw_only=True)
class Character:
    """As much of a persona as its system message tells."""

    name: str = "Someone"
    about: str = ""
    traits: tuple[str, ...] = ()
    mood: str = ""
    loves: tuple[str, ...] = ()
    likes: tuple[str, ...] = ()
    dislikes: tuple[str, ...] = ()


# Every line of a talk comes with the same system message, but for the mood.
@lru_cache(maxsize=64)
def read_character(system: str) -> Character:
    """The character a system message describes; what it does not say is left empty."""
    parts: dict[str, str] = {}
    for line in system.splitlines():
        for label in (prompt.ABOUT, prompt.TRAITS, prompt.MOOD, prompt.LOVES, prompt.LIKES, prompt.DISLIKES):
            if line.startswith(label):
                parts[label] = line.removeprefix(label)
    first = system.partition("\n")[0]
    name, found, _ = first.removeprefix(prompt.YOU_ARE).partition(". Stay in character")
    if not found:
        # A system message somebody else wrote.
        match = re.search(r"\bYou are ([^.,;\n]+)", system)
        name = match[1] if match else ""
    return Character(
        name=name.strip() or "Someone",
        about=parts.get(prompt.ABOUT, "").rstrip("."),
        traits=tuple(
            re.sub(r" \(.*\)$", "", trait) for trait in _entries(parts, prompt.TRAITS) if ":" not in trait
        ),
        mood=parts.get(prompt.MOOD, "").rstrip("."),
        loves=_entries(parts, prompt.LOVES),
        likes=_entries(parts, prompt.LIKES),
        dislikes=_entries(parts, prompt.DISLIKES),
    )


def compose(messages: Sequence[Message], dice: random.Random) -> str:
    """The answer to the last user line of `messages`."""
    who = read_character("\n".join(message.content for message in messages if message.role == "system"))
    said = [message.content for message in messages if message.role == "user"]
    line, earlier = (said[-1], said[:-1]) if said else ("", [])
    intent = next((name for name, pattern in _INTENTS if pattern.search(line[:MAX_READ_CHARS])), None)
    match intent:
        case "nature":
            return _fill(dice, _NATURE, who)
        case "memory":
            return _memory(dice, who, earlier)
        case "name" | "feeling" | "thanks" | "farewell":
            return _fill(dice, _BY_INTENT[intent], who)
    parts = [_fill(dice, _GREETINGS_AGAIN if earlier else _GREETINGS, who)] if intent == "greeting" else []
    topical = _topical(dice, who, line)
    if topical:
        parts.append(topical)
    elif intent != "greeting":
        kind = _QUESTIONS if line.rstrip().endswith("?") else _STATEMENTS
        parts.append(_fill(dice, kind, who, quote=quote(line)))
    if earlier and dice.random() < 0.4:
        parts.append(_fill(dice, _CALLBACKS, who, quote=quote(dice.choice(earlier[-3:]))))
    parts.append(_fill(dice, _INVITATIONS, who))
    return " ".join(parts)


def quote(text: str) -> str:
    """`text` on one line, cut between words if it is long."""
    text = " ".join(text.split()).replace('"', "'")
    if len(text) <= MAX_QUOTE_CHARS:
        return text
    cut = text[:MAX_QUOTE_CHARS]
    return (cut.rpartition(" ")[0] or cut) + "…"


def _memory(dice: random.Random, who: Character, earlier: list[str]) -> str:
    if not earlier:
        return _fill(dice, _NOTHING_REMEMBERED, who)
    return _fill(dice, _REMEMBERED, who, quote=quote(earlier[-1]))


def _topical(dice: random.Random, who: Character, line: str) -> str:
    """A sentence about the first topic of the character's that `line` mentions."""
    for topics, sentences in ((who.loves, _ON_LOVED), (who.likes, _ON_LIKED), (who.dislikes, _ON_DISLIKED)):
        for topic in topics:
            # "stories" is also mentioned by "story", "songs" by "song".
            stem = re.sub(r"(ies|s|y)$", "", topic.lower()) or topic.lower()
            if re.search(rf"\b{re.escape(stem)}", line[:MAX_READ_CHARS].lower()):
                return _fill(dice, sentences, who, topic=topic)
    return ""


def _fill(dice: random.Random, sentences: Sequence[str], who: Character, **words: str) -> str:
    sentence = dice.choice(sentences).format(
        name=who.name,
        about=f": {_ARTICLE.sub(_lower, who.about)}" if who.about else ", and little more is told of me",
        trait=dice.choice(who.traits) if who.traits else "curious",
        mood=who.mood or "well enough",
        love=dice.choice(who.loves or who.likes or ("good company",)),
        **words,
    )
    return sentence[0].upper() + sentence[1:]


def _entries(parts: dict[str, str], label: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in parts.get(label, "").split(",") if entry.strip())


def _lower(match: re.Match[str]) -> str:
    return match[0].lower()


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(words, re.IGNORECASE)


_ARTICLE = re.compile(r"^(An?|The)\b")
# The first that matches wins, so the honest answer goes first.
_INTENTS = (
    (
        "nature",
        _pattern(
            r"\b(are|r)\s+(you|u)\s+(\w+\s+){0,3}?(real|human|person|ai|a\.i\.|bot|chatbot|robot|machine|model|llm"
            r"|language model|program|computer|script(ed)?|alive|gpt|chatgpt|artificial)\b"
            r"|\b(language model|which model|what model|what llm|which llm|what ai|chatgpt|openai|ollama)\b"
            r"|\byou('re| are)\s+(just\s+|only\s+)?(an?\s+)?(ai|bot|robot|machine|program|llm|script)\b"
            r"|\bam i (talking|speaking|chatting) (to|with)\b"
        ),
    ),
    (
        "memory",
        _pattern(r"\b(remember|recall)\b|\bdid i (say|tell|ask)\b|\bi (said|told you|asked)\b|\bearlier\b"),
    ),
    (
        "name",
        _pattern(r"\bwho are you\b|\byour name\b|\b(about|introduce|describe) yourself\b|\bwhat are you\b"),
    ),
    (
        "feeling",
        _pattern(r"\bhow (are|do) you (doing|feel|feeling|today)\b|\bhow are you\b|\bhow('s| is) it going\b"),
    ),
    ("farewell", _pattern(r"\b(good ?bye|bye|farewell|good ?night|see you|take care)\b")),
    ("thanks", _pattern(r"\b(thanks|thank you|cheers)\b")),
    (
        "greeting",
        _pattern(r"^\W*(hi|hello|hey|greetings|hail|salutations|good (morning|day|afternoon|evening))\b"),
    ),
)

_NATURE = (
    (
        "Honestly? I am the scripted stand-in for {name}: no language model is connected here, and a script "
        "picks my sentences. Connect a model, and {name} will answer in earnest."
    ),
    (
        "No person, and no AI model either: I am a scripted stand-in that speaks {name}'s lines until a "
        "language model is connected here."
    ),
    (
        "Fair question. What you hear is a scripted stand-in, not a language model: {name}'s words come from "
        "templates. With a real model behind the server you would get more of {name} than this."
    ),
)
_GREETINGS = (
    "Hello! I am {name}, and I was hoping for company.",
    "Well met, friend. {name} is the name.",
    "Ah, a new voice! Welcome, I am {name}.",
    "Greetings! They call me {name}, and {trait} besides.",
    "Good to see you. {name}, at your service.",
)
_GREETINGS_AGAIN = (
    "Hello again!",
    "There you are again. {name} has not gone anywhere.",
    "Welcome back, friend.",
    "Still here, and still {name}.",
)
_NAMES = (
    "I am {name}{about}. If you want to make me talk, ask me about {love}.",
    "They call me {name}{about}. And {trait}, some would add.",
    "My name is {name}{about}. What shall I call you?",
)
_FEELINGS = (
    "Kind of you to ask. My mood: {mood}. And yours?",
    "How I am? In a word or two, {mood}. A little {love} would do me good.",
    "{mood}, since you ask. Tell me how you are.",
)
_THANKS = (
    "You are welcome. It cost me nothing but breath.",
    "Gladly done. {name} is not one to count favours.",
    "Think nothing of it. Buy me a talk about {love} some day.",
)
_FAREWELLS = (
    "Farewell, then. Come back when you have time for {love}.",
    "Go well, friend. {name} will be here.",
    "Until next time. I will keep a thought about {love} for you.",
)
_BY_INTENT = {"name": _NAMES, "feeling": _FEELINGS, "thanks": _THANKS, "farewell": _FAREWELLS}
_ON_LOVED = (
    "You speak of {topic}, and I am all ears: there is little I love more.",
    "Now that is a word to win me with: {topic}! I could talk until the candles are down.",
    "{topic}? Ask anyone about {name} and they will tell you to bring time for that.",
    "Few things stir me as {topic} does. It is the {trait} side of me, I suppose.",
)
_ON_LIKED = (
    "I have a soft spot for {topic}, I admit.",
    "{topic} is always worth a word or two.",
    "I like {topic} well enough; not as I like {love}, but well enough.",
)
_ON_DISLIKED = (
    "Must we talk of {topic}? It has never been to my taste.",
    "{topic}... I would sooner speak of {love}, if it is all the same to you.",
    "I will be plain: {topic} tires me.",
)
_QUESTIONS = (
    '"{quote}", you ask. I have no wise answer ready, but I like the question.',
    'You ask: "{quote}". I would have to turn that over for a while.',
    'That is a question for a longer evening: "{quote}" And I am only {name}.',
    'Hm. "{quote}" What made you think of it?',
)
_STATEMENTS = (
    '"{quote}", you say. Tell me more of it.',
    'So, "{quote}". A {trait} soul like me has to think about that.',
    'I hear you: "{quote}". It makes me think of {love}, though I could not say why.',
    '"{quote}"? There is a story behind that, I am sure.',
)
_CALLBACKS = (
    'Before, you said "{quote}", and it has stayed with me.',
    'And I have not forgotten that you said "{quote}".',
    'It goes well with what you told me: "{quote}".',
)
_REMEMBERED = (
    'Of course. You said "{quote}", and I took note of it.',
    'The last thing you told me was "{quote}".',
    'I do: "{quote}". Those were your words.',
)
_NOTHING_REMEMBERED = (
    "There is nothing yet for me to remember: this is where our talk begins.",
    "You have told me nothing before this. But I am listening now.",
)
_INVITATIONS = (
    "What brings you here today?",
    "What would you like to hear?",
    "Shall we talk of {love}?",
    "And you, what is on your mind?",
    "Go on, I have time.",
    "Do you care for {love} at all?",
)
