"""What the terminal shows while it runs, and afterwards."""

import io

from loadgen.progress import LOG_EVERY_S, Progress, progress_line, report_lines
from loadgen.recorder import Second
from tests.loadgen.test_results import complete, seen, some


def second(**changes: object) -> Second:
    return Second(**{"at_s": 3.0, "connections": 50, "waiting": 0, "oldest_ms": 0.0, **changes})


def test_a_line_has_rate_p95_errors_and_the_servers_memory() -> None:
    line = progress_line(second(answered=120, p95_ms=3.25, server={"memory_mb": 84.2, "cpu": 0.5}), 10, 2)
    assert line == "    3/10 s  50 conn  120/s  p95 3.2 ms  2 errors  server 84 MB  50% cpu"


def test_a_stall_shows_before_anything_is_answered() -> None:
    assert "waiting 4.2 s" in progress_line(second(waiting=9, oldest_ms=4200.0), 10, 0)
    assert "idle" in progress_line(second(), 10, 0)


def test_a_log_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    progress = Progress(stream, 100)
    for _ in range(LOG_EVERY_S * 3):
        progress.show(second(errors=1))
    progress.end()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    # Errors are of the whole run so far.
    assert f"{LOG_EVERY_S * 3} errors" in lines[-1]


def test_a_terminal_is_written_over() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream, 100)
    progress.show(second(answered=100_000))
    progress.show(second())
    progress.end()
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().count("\n") == 1
    _, long, short = stream.getvalue().rstrip("\n").split("\r")
    assert len(short) == len(long)


def test_the_report_says_what_was_left_out_and_what_failed() -> None:
    document = complete(seen(some))
    document["spoiled"] = ["it was late"]
    text = "\n".join(report_lines(document))
    for part in (
        "a warm-up of 2 s with 0 answers is left out",
        "stage 2 second",
        "error overloaded: 1 (expected)",
        "error timeout: 1",
        "SPOILED: it was late",
        "FAILED: errors is 1",
    ):
        assert part in text
