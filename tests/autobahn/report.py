"""Judges what Autobahn's fuzzing client has seen, and says it in a table."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

PASSED = ("OK", "NON-STRICT", "INFORMATIONAL")
"""What a case may come to, best first. The second is allowed by the RFC and not what it prefers; the third
is where the RFC says nothing."""
EXCLUDED = "excluded"
FAILED = "FAILED"
DID_NOT_RUN = "did not run"
OUTCOMES = (*PASSED, FAILED, EXCLUDED, DID_NOT_RUN)

BINARY = "1.2."
"""Cases that want a binary message back. This server takes none, by contract, and closes with `BINARY_CODE`;
so they cannot pass, and are excluded where that is what they met. With another end they failed."""
BINARY_CODE = 1003


@attrs.frozen
class Verdict:
    """What one case came to with one engine."""

    case: str
    outcome: str
    detail: str = ""


def judge(seen: Mapping[str, Any], cases: Sequence[str]) -> list[Verdict]:
    """One engine's part of the client's report, for each of the `cases` that were to run."""
    return [_judge(case, seen.get(case)) for case in cases]


def _judge(case: str, seen: Mapping[str, Any] | None) -> Verdict:
    if seen is None:
        return Verdict(case, DID_NOT_RUN)
    behavior, close, code = seen["behavior"], seen["behaviorClose"], seen["remoteCloseCode"]
    detail = f"behavior {behavior}, close {close}, code {code}"
    if case.startswith(BINARY):
        return Verdict(case, EXCLUDED if code == BINARY_CODE else FAILED, detail)
    if behavior not in PASSED or close not in PASSED:
        return Verdict(case, FAILED, detail)
    return Verdict(case, max(behavior, close, key=PASSED.index))


def is_good(verdicts: Sequence[Verdict]) -> bool:
    """Whether there are any, and all ran and none failed."""
    return bool(verdicts) and not any(verdict.outcome in (FAILED, DID_NOT_RUN) for verdict in verdicts)


def lines(engines: Mapping[str, Sequence[Verdict]]) -> Iterator[str]:
    """One table, a row for each engine, and below it by name what is not plainly OK."""
    yield " " * 14 + "".join(f"{outcome:>15}" for outcome in OUTCOMES)
    for engine, verdicts in engines.items():
        counts = Counter(verdict.outcome for verdict in verdicts)
        yield f"{engine:14}" + "".join(f"{counts[outcome]:15}" for outcome in OUTCOMES)
    for engine, verdicts in engines.items():
        for outcome in OUTCOMES[1:]:
            named = [verdict for verdict in verdicts if verdict.outcome == outcome]
            if outcome == FAILED:
                for verdict in named:
                    yield f"{engine} {FAILED} {verdict.case}: {verdict.detail}"
            elif named:
                yield f"{engine} {outcome}: {' '.join(verdict.case for verdict in named)}"
    yield f"excluded are binary messages, which this server closes with {BINARY_CODE}"
