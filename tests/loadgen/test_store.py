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


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "holds no runs"),
        ({"a.json": b"no json"}, "is no JSON"),
        ({"a.json": b"[]"}, "is no run of loadgen"),
        ({"a.json": orjson.dumps({"format": 99, "figures": {}})}, "another version"),
        (
            {
                name: orjson.dumps({"format": 1, "figures": {}, "scenario": name})
                for name in ("a.json", "b.json")
            },
            "several scenarios",
        ),
    ],
)
def test_what_is_no_run(tmp_path: Path, files: dict[str, bytes], complaint: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(UnreadableRun, match=complaint):
        load(tmp_path)
