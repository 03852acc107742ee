"""The page to chat on, as somebody who uses it sees it."""

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.server import PageServer, page_server, wait_until

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.slow

FAST = {"PERSONA_LLM_SCRIPTED_FIRST_TOKEN_S": "0", "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "200"}
# An answer that lasts for as long as a test needs it.
SLOW = {"PERSONA_LLM_SCRIPTED_FIRST_TOKEN_S": "0", "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "2"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    with page_server(tmp_path, **FAST) as running:
        yield running


@pytest.fixture
def slow_server(tmp_path: Path) -> Iterator[PageServer]:
    with page_server(tmp_path, **SLOW) as running:
        yield running


def until_speaking(page: "Page") -> str:
    """What is said so far, once there is something."""
    page.until(lambda: page.answers and page.answers[-1], "the persona says nothing")
    return page.answers[-1]


def kept_turns(server: PageServer, page: "Page") -> list[dict[str, Any]]:
    """What the server has of the conversation on the page, the newest twenty turns."""
    history = server.call("conversation.history", {"conversation_id": conversation_on(page)})
    return list(history["turns"])


def conversation_on(page: "Page") -> str:
    persona_id = page.script("return document.querySelector('#persona').value")
    found = page.script("return localStorage.getItem(`persona.conversation.${arguments[0]}`)", persona_id)
    assert isinstance(found, str)
    return found


def chosen(page: "Page") -> str:
    return str(page.script("return document.querySelector('#persona').selectedOptions[0].textContent"))


def test_a_chat_with_a_persona_of_ones_choice(server: PageServer, page: "Page") -> None:
    page.open(server.pages)
    page.until_ready()
    page.until_text("#link", "Connected")
    assert page.texts("#persona option") == ["Aria", "Kira"]
    page.choose("#persona", "Kira")
    page.until_text("#about", "scholar")
    page.say("What do you read?")
    page.until_answered()
    assert page.texts(".turn h2") == ["You", "Kira"]
    assert page.text(".turn.mine .text") == "What do you read?"
    # What is on the page is what was kept, and somebody who listens hears it once, when it is whole.
    assert [turn["content"] for turn in kept_turns(server, page)] == ["What do you read?", page.answers[0]]
    assert page.text("#announce") == f"Kira: {page.answers[0]}"
    assert page.find("#turns").get_attribute("aria-live") is None


def test_an_answer_grows_while_it_is_made(slow_server: PageServer, page: "Page") -> None:
    page.open(slow_server.pages)
    page.say("Tell me a story.")
    beginning = until_speaking(page)
    assert page.find(".turn.running").get_attribute("aria-busy") == "true"
    assert page.text("#announce") == ""
    more = page.until(lambda: page.answers[-1] != beginning and page.answers[-1])
    assert more.startswith(beginning)


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_an_answer_is_stopped_and_what_was_said_is_kept(
    how: str, slow_server: PageServer, page: "Page"
) -> None:
    page.open(slow_server.pages)
    page.say("Tell me a story.")
    until_speaking(page)
    if how == "button":
        page.find("#stop").click()
    else:
        page.press("ESCAPE")
    page.until_answered()
    assert page.text("#notice") == "Stopped."
    assert page.texts(".turn:not(.mine) .note") == ["stopped"]
    said = page.answers
    page.driver.refresh()
    page.until_ready()
    page.until_answered()
    # A token that was under way when the server heard of it is kept, too.
    assert page.answers[0].startswith(said[0])
    assert page.texts(".turn:not(.mine) .note") == ["stopped"]


def test_enter_sends_and_shift_enter_begins_a_new_line(server: PageServer, page: "Page") -> None:
    page.open(server.pages)
    page.until_ready()
    page.find("#line").click()
    page.write("one")
    page.press("ENTER", shift=True)
    page.write("two")
    assert page.answers == []
    page.press("ENTER")
    page.until_answered()
    assert page.text(".turn.mine .text") == "one\ntwo"
    assert page.script("return document.activeElement.id") == "line"
    # Nothing is not sent.
    page.press("ENTER")
    page.write("  ")
    page.press("ENTER")
    assert len(page.all(".turn")) == 2


def test_a_reload_brings_persona_and_conversation_back(server: PageServer, page: "Page") -> None:
    page.open(server.pages)
    page.until_ready()
    page.choose("#persona", "Kira")
    page.say("The first line")
    page.until_answered(1)
    page.say("The second line")
    page.until_answered(2)
    before = page.texts(".turn .text")
    page.driver.refresh()
    page.until_ready()
    page.until(lambda: page.texts(".turn .text") == before, "the history is another one")
    assert chosen(page) == "Kira"
    page.say("And on it goes")
    page.until_answered(3)
    assert len(kept_turns(server, page)) == 6


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(slow_server: PageServer, page: "Page") -> None:
    page.open(slow_server.pages)
    page.say("Tell me a story.")
    said = until_speaking(page)

    def reloaded() -> bool:
        # What the server kept of the answer is on disk a moment after the page has gone.
        page.driver.refresh()
        page.until(lambda: page.find("#send").is_displayed() and page.find("#send").is_enabled())
        return len(page.all(".turn")) == 2

    page.until(reloaded)
    assert page.text(".turn.mine .text") == "Tell me a story."
    assert page.answers[0].startswith(said)
    assert page.texts(".turn:not(.mine) .note") == ["broke off"]


def test_each_persona_has_its_own_conversation_and_a_new_one_can_be_begun(
    server: PageServer, page: "Page"
) -> None:
    page.open(server.pages)
    page.say("For Aria")
    page.until_answered()
    page.choose("#persona", "Kira")
    page.until(lambda: page.texts(".turn") == [])
    page.choose("#persona", "Aria")
    page.until(lambda: page.texts(".turn.mine .text") == ["For Aria"])
    page.until_ready()
    page.find("#fresh").click()
    page.until(lambda: page.texts(".turn") == [] and page.find("#empty").is_displayed())
    page.say("Another matter")
    page.until_answered()
    page.driver.refresh()
    page.until_ready()
    page.until(lambda: page.texts(".turn.mine .text") == ["Another matter"])


def test_earlier_turns_are_a_click_away(tmp_path: Path, page: "Page") -> None:
    with page_server(tmp_path, PERSONA_LIMITS_RATE_LIMIT_PER_MINUTE="0", **FAST) as server:
        page.open(server.pages)
        page.say("line 0")
        page.until_answered()
        conversation_id = conversation_on(page)
        with server.connected() as call:
            for number in range(1, 31):
                line = {"message": f"line {number}", "token_budget": 5}
                call("persona.chat", {"conversation_id": conversation_id, **line})
        page.driver.refresh()
        page.until(lambda: len(page.all(".turn")) == 50)
        page.find("#older").click()
        page.until(lambda: len(page.all(".turn")) == 62)
        assert page.texts(".turn.mine .text") == [f"line {number}" for number in range(31)]
        assert not page.find("#older").is_displayed()


def test_another_answer_takes_the_place_of_the_last(server: PageServer, page: "Page") -> None:
    page.open(server.pages)
    page.say("Sing!")
    page.until_answered()
    first = page.answers
    page.find("#regenerate").click()
    page.until(lambda: page.answers != first)
    page.until_answered()
    assert page.answers != first
    assert page.texts(".turn.mine .text") == ["Sing!"]
    turns = kept_turns(server, page)
    assert [turn["content"] for turn in turns] == ["Sing!", page.answers[0]]
    assert turns[1]["sibling_count"] == 2


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_restarts_under_an_open_page(
    ending: signal.Signals, server: PageServer, page: "Page"
) -> None:
    page.open(server.pages)
    page.say("Before")
    page.until_answered()
    before = page.texts(".turn .text")
    server.stop(signal_number=ending)
    page.until(lambda: page.find("#link").get_attribute("data-state") in ("waiting", "connecting"))
    page.until(lambda: not page.find("#send").is_enabled())
    assert page.texts(".turn .text") == before
    page.find("#line").send_keys("Written meanwhile")
    server.start()
    # By itself: nobody presses anything.
    page.until_text("#link", "Connected", within_s=40)
    page.until_ready()
    assert page.texts(".turn .text") == before
    page.find("#line").click()
    page.press("ENTER")
    page.until_answered(2)
    assert page.texts(".turn.mine .text") == ["Before", "Written meanwhile"]


def test_a_line_that_was_lost_with_its_server_can_be_sent_again(
    slow_server: PageServer, page: "Page"
) -> None:
    page.open(slow_server.pages)
    page.say("Tell me a story.")
    until_speaking(page)
    slow_server.stop(signal_number=signal.SIGKILL)
    page.until_text("#notice", "connection was lost")
    slow_server.start()
    page.until_text("#notice", "Your last line was lost", within_s=40)
    assert page.texts(".turn") == []
    assert page.script("return document.querySelector('#line').value") == "Tell me a story."


def test_an_answer_that_a_stopping_server_still_gives_is_no_trouble(tmp_path: Path, page: "Page") -> None:
    slowly = {**FAST, "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "4"}
    with page_server(tmp_path, **slowly) as server, server.connected() as call:
        page.open(server.pages)
        page.say("Hello.")
        until_speaking(page)
        # Whoever is answered for longer keeps the connections open after the page's answer.
        call("persona.chat_stream", {"persona_id": "kira", "message": "Tell me a long story, please."})
        server.stop()
        page.until(lambda: page.find("#link").get_attribute("data-state") in ("waiting", "connecting"))
        assert page.texts(".turn:not(.mine) .note") == [""]
        assert page.text("#notice") == ""


def test_trouble_of_the_last_connection_is_over_with_the_next(tmp_path: Path, page: "Page") -> None:
    with page_server(tmp_path, PERSONA_LLM_SCRIPTED_FIRST_TOKEN_S="60") as server:
        page.open(server.pages)
        page.say("Anybody?")
        page.until_text("#notice", "is thinking")
        server.stop(signal_number=signal.SIGKILL)
        page.until_text("#notice", "connection was lost")
        server.start()
        page.until_text("#link", "Connected", within_s=40)
        page.until_ready()
        assert page.text("#notice") == ""
        assert page.script("return document.querySelector('#line').value") == "Anybody?"


def test_a_conversation_that_is_no_longer_there_is_let_go(server: PageServer, page: "Page") -> None:
    page.open(server.pages)
    page.say("Before")
    page.until_answered()
    gone = conversation_on(page)
    server.stop()
    (server.folder / "p.db").unlink()
    server.start()
    page.until(lambda: page.texts(".turn") == [] and page.find("#send").is_enabled(), within_s=40)
    page.say("After")
    page.until_answered()
    assert conversation_on(page) != gone
    assert kept_turns(server, page)[0]["content"] == "After"


def test_a_line_for_a_conversation_that_was_deleted_elsewhere_begins_another(
    server: PageServer, page: "Page"
) -> None:
    page.open(server.pages)
    page.say("Before")
    page.until_answered()
    gone = conversation_on(page)
    server.call("conversation.delete", {"conversation_id": gone})
    page.say("After")
    page.until(lambda: page.texts(".turn.mine .text") == ["After"], "the page is stuck")
    page.until_answered()
    assert page.text("#notice") == ""
    assert conversation_on(page) != gone
    assert kept_turns(server, page)[0]["content"] == "After"


def test_no_other_answer_comes_to_a_line_that_was_deleted_elsewhere(server: PageServer, page: "Page") -> None:
    page.open(server.pages)
    page.say("Before")
    page.until_answered()
    server.call("conversation.delete", {"conversation_id": conversation_on(page)})
    page.find("#regenerate").click()
    page.until_text("#notice", "no such conversation")
    page.until(lambda: page.texts(".turn") == [])


def test_markup_is_text_wherever_it_stands(server: PageServer, page: "Page") -> None:
    nasty = "<img src=x onerror=document.title=1>"
    created = server.call("persona.create", {"name": nasty, "description": f"<b>bold</b>{nasty}"})
    page.open(server.pages)
    page.until_ready()
    page.choose("#persona", nasty)
    page.until_text("#about", "<b>bold</b>")
    # The scripted stand-in repeats what it is told.
    page.say("<b>x</b>")
    page.until_answered(1)
    assert "<b>x</b>" in page.answers[0]
    page.say(f"{nasty}<script>document.title=2</script>")
    page.until_answered(2)
    assert page.texts(".turn h2") == ["You", nasty] * 2
    page.driver.refresh()
    page.until_ready()
    page.until(lambda: len(page.all(".turn")) == 4)
    assert page.all("main img, main b, main script, .who img, .who b") == []
    assert page.driver.title == "Chat · persona"
    server.call("persona.delete", {"persona_id": created["persona_id"]})
    page.until(lambda: page.texts("#persona option") == ["Aria", "Kira"], "the page still offers it")


def test_a_server_with_tokens_asks_for_one(tmp_path: Path, page: "Page") -> None:
    tokens = f"ann:user:sha256:{hashlib.sha256(b'open-sesame').hexdigest()}"
    with page_server(tmp_path, PERSONA_AUTH_TOKENS=tokens, **FAST) as server:
        page.open(server.pages)
        page.until(lambda: page.find("#token").is_displayed())
        page.write("wrong")
        page.press("ENTER")
        page.until_text("#token-problem", "does not know this token")
        page.write("no token at all, that")
        page.press("ENTER")
        page.until_text("#token-problem", "A token has no spaces")
        page.write("open-sesame")
        page.press("ENTER")
        page.until(lambda: not page.find("#token").is_displayed())
        page.say("Hello")
        page.until_answered()
        page.driver.refresh()
        page.until_ready()
        page.until(lambda: len(page.all(".turn")) == 2)
        # Neither in the log nor in what outlives the tab.
        assert "open-sesame" not in server.log() + str(page.script("return JSON.stringify(localStorage)"))


def test_a_model_that_is_missing_is_told_in_words(tmp_path: Path, page: "Page") -> None:
    nowhere = {"PERSONA_LLM_BACKEND": "openai", "PERSONA_LLM_BASE_URL": "http://127.0.0.1:9"}
    with page_server(tmp_path, PERSONA_LLM_MODEL="none", PERSONA_LLM_MAX_RETRIES="0", **nowhere) as server:
        page.open(server.pages)
        page.say("Hello?")
        page.until_text("#notice", "The language model does not answer")
        assert "bad" in (page.find("#notice").get_attribute("class") or "")
        # Nothing was said, so the line is there to be sent again.
        assert page.texts(".turn") == []
        assert page.script("return document.querySelector('#line').value") == "Hello?"


def test_a_line_that_is_too_long_is_refused_in_one_sentence(server: PageServer, page: "Page") -> None:
    page.open(server.pages)
    page.until_ready()
    page.script("document.querySelector('#line').value = 'much '.repeat(6000)")
    page.find("#send").click()
    page.until_text("#notice", "That did not work: ")
    assert page.text("#notice").endswith("fit.")


def test_a_persona_that_rests_says_for_how_long(server: PageServer, page: "Page") -> None:
    server.call("persona.create", {"name": "Drowsy", "description": "Tired.", "max_social_energy": 0.1})
    page.open(server.pages)
    page.until_ready()
    page.choose("#persona", "Drowsy")
    page.say("Hello")
    page.until_answered()
    page.until(lambda: "Drowsy (resting)" in page.texts("#persona option"))
    page.say("Still there?")
    page.until_text("#notice", "Drowsy is resting and can talk again in ")
    assert page.texts(".turn.mine .text") == ["Hello"]


def test_a_persona_that_is_deleted_while_it_answers_leaves_the_page_to_another(
    tmp_path: Path, page: "Page"
) -> None:
    slowly = {**FAST, "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "10"}
    with page_server(tmp_path, **slowly) as server:
        mayfly = server.call("persona.create", {"name": "Mayfly", "description": "Not here for long."})
        page.open(server.pages)
        page.until_ready()
        page.choose("#persona", "Mayfly")
        page.say("Tell me a story.")
        until_speaking(page)
        server.call("persona.delete", {"persona_id": mayfly["persona_id"]})
        page.until(lambda: chosen(page) == "Aria")
        page.until(lambda: page.texts(".turn") == [], "what it said is left there, beneath another name")
        page.find("#line").clear()
        page.say("Who are you?")
        page.until_answered()
        assert page.texts(".turn h2") == ["You", "Aria"]


def test_who_waits_for_the_model_sees_its_place(tmp_path: Path, page: "Page") -> None:
    with page_server(tmp_path, PERSONA_LLM_MAX_CONCURRENCY="1", **SLOW) as server, server.connected() as call:
        call("persona.chat_stream", {"persona_id": "aria", "message": "Tell me a story."})
        page.open(server.pages)
        page.say("Me, too")
        page.until_text("#notice", "Next in line for the model.")
        page.press("ESCAPE")
        page.until_text("#notice", "Stopped.")
        wait_until(lambda: not page.find("#stop").is_displayed())
        assert page.script("return document.querySelector('#line').value") == "Me, too"


def test_everything_is_reached_by_keyboard_and_has_a_name(server: PageServer, page: "Page") -> None:
    page.open(server.pages)
    page.say("Hello")
    page.until_answered()
    page.driver.refresh()
    page.until(lambda: page.find("#regenerate").is_displayed())
    order = []
    for _ in range(8):
        page.press("TAB")
        order.append(
            page.script("return document.activeElement.id || document.activeElement.getAttribute('href')")
        )
    assert order == ["/", "/dashboard", "persona", "fresh", "conversation", "line", "send", "regenerate"]
    for css in ("#persona", "#line", "#conversation", "#send", "#regenerate", "#fresh"):
        assert page.find(css).accessible_name, css
