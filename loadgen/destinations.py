"""Where a measured table goes besides the terminal, and what it is held against."""

import os
from collections.abc import Sequence
from pathlib import Path

import attrs

from loadgen.baseline import Baseline, Check, check, read_baseline, save_baseline
from loadgen.tables import Table, TableError, docs_around, write_docs


@attrs.frozen(kw_only=True)
class Destinations:
    """`None` is nowhere."""

    folder: Path | None = None
    """Of all figures, as JSON."""
    docs: Path | None = None
    """A Markdown file with markers."""
    baseline: Path | None = None
    beside: bool = False
    is_part: bool = False
    """Both as in `save_baseline`."""
    held_against: Path | None = None
    """A baseline, too; it may be the same file, and is read before that is written."""

    def look_ahead(self, names: Sequence[str]) -> None:
        """What would fail after these tables are measured fails before it. Raises `TableError`."""
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise TableError(f"cannot write {self.folder}: {exc.strerror}") from None
        if self.docs is not None:
            for name in names:
                docs_around(name, self.docs)
        for file in (self.baseline, self.held_against):
            if file is not None:
                read_baseline(file)
        file = self.baseline
        if file is not None and not os.access(file if file.exists() else file.parent, os.W_OK):
            raise TableError(f"cannot write {file}")

    def take(self, table: Table) -> Check | None:
        """Write the table wherever it is wanted; what came of the check, where there is one. Raises
        `TableError`."""
        if self.folder is not None:
            (self.folder / f"{table.name}.json").write_bytes(table.as_json())
        if self.docs is not None:
            write_docs(table, self.docs)
        found = None
        if self.held_against is not None:
            found = check(table, read_baseline(self.held_against).get(table.name, Baseline()))
        if self.baseline is not None:
            save_baseline(table, self.baseline, beside=self.beside, is_part=self.is_part)
        return found
