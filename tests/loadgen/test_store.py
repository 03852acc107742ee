"""Runs on disk."""

from pathlib import Path

import orjson
import pytest

from loadgen.store import UnreadableRun, load, save
from tests.loadgen.test_results import complete, seen, some


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    document = complete(seen(some))
    pages = [save(document, tmp_path / "out", number) for number in range(2)]
    assert [page.name for page in pages] == ["test-1.html", "test-2.html"]
    assert [each["figures"] for each in load(tmp_path / "out")] == [document["figures"]] * 2
    assert len(load(tmp_path / "out/test-1.json")) == 1


def test_runs_of_before_do_not_stay_among_the_repeats(tmp_path: Path) -> None:
    document = complete(seen(some))
    other = {**document, "scenario": "test-2"}
    for number in range(3):
        save(document, tmp_path, number)
        save(other, tmp_path, number)
    (tmp_path / "test-mine.json").write_text("kept")
    save(document, tmp_path, 0)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "test-1.json",
        *(f"test-2-{number}.json" for number in (1, 2, 3)),
        "test-mine.json",
    ]
    assert len(list(tmp_path.glob("*.html"))) == 4


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "holds no runs"),
        ({"a.json": b"no json"}, "is no JSON"),
        ({"a.json": b"[]"}, "is no run of loadgen"),
        ({"a.json": orjson.dumps({**complete(seen(some)), "format": 99})}, "another version"),
        ({"a.json": b'{"format": 1, "figures": {}}'}, "is no run of loadgen"),
        ({"a.json": orjson.dumps({**complete(seen(some)), "stages": []})}, "is no run of loadgen"),
        ({"a.json": orjson.dumps({**complete(seen(some)), "figures": {"rate": None}})}, "is no run"),
        (
            {name: orjson.dumps({**complete(seen(some)), "scenario": name}) for name in ("a.json", "b.json")},
            "several scenarios",
        ),
    ],
)
def test_what_is_no_run(tmp_path: Path, files: dict[str, bytes], complaint: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(UnreadableRun, match=complaint):
        load(tmp_path)
