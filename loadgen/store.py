"""Where runs are kept: a folder of a run, or of several repeats of it, a JSON document and a page each."""

from pathlib import Path
from typing import Any, cast

import orjson

from loadgen.page import page
from loadgen.results import FORMAT, Document

DEFAULT_FOLDER = Path("loadgen-results")


class UnreadableRun(Exception):
    """This is no run of ours. The message is for people."""


def save(document: Document, folder: Path, number: int) -> Path:
    """Write a run's JSON and its page; the page's path. What is there of this scenario from this number on is
    of a time before, and goes: it is no repeat of this one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.json"), *folder.glob("*.html")]:
        scenario, _, its_number = path.stem.rpartition("-")
        if scenario == document["scenario"] and its_number.isdecimal() and int(its_number) > number:
            path.unlink()
    stem = f"{document['scenario']}-{number + 1}"
    (folder / f"{stem}.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    path = folder / f"{stem}.html"
    path.write_text(page(document), encoding="utf-8")
    return path


def load(path: Path) -> list[Document]:
    """The runs of a folder, or the one of a file. Raises `UnreadableRun`."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UnreadableRun(f"{path} holds no runs")
    documents = [_read(file) for file in files]
    if len({document["scenario"] for document in documents}) > 1:
        names = ", ".join(sorted({document["scenario"] for document in documents}))
        raise UnreadableRun(f"{path} holds runs of several scenarios ({names}); name a file")
    return documents


def _read(file: Path) -> Document:
    try:
        document: Any = orjson.loads(file.read_bytes())
    except OSError as exc:
        raise UnreadableRun(f"cannot read {file}: {exc.strerror}") from None
    except orjson.JSONDecodeError:
        raise UnreadableRun(f"{file} is no JSON") from None
    if not _is_run(document):
        raise UnreadableRun(f"{file} is no run of loadgen, or one of another version")
    return cast(Document, document)


def _is_run(found: Any) -> bool:
    """Whether it has what a comparison looks at."""
    return (
        isinstance(found, dict)
        and found.get("format") == FORMAT
        and {"scenario", "server", "machine", "spoiled", "stages", "figures"} <= found.keys()
        and isinstance(found["figures"], dict)
        and all(isinstance(value, float | int) for value in found["figures"].values())
        and isinstance(found["stages"], list)
        and found["stages"] != []
        and all(
            isinstance(stage, dict) and {"connections", "rate", "to_s"} <= stage.keys()
            for stage in found["stages"]
        )
    )
