"""What the `system.*` methods are handed: the monitor's figures, and the tree of tasks."""

from collections.abc import Callable, Sequence

import attrs
import trio

from persona.monitor.tree import Births, RequestNode, TaskNode, as_json, as_text, read_tree
from persona.rpc import figures as f

SIGNAL_SIBLINGS = 3
"""Of a kind in each nursery, where nobody says how many."""


@attrs.frozen(kw_only=True)
class Observer:
    """`metrics_of` is the monitor's; it is made later than who asks it."""

    metrics_of: Callable[[float, bool], f.SystemMetrics]
    births: Births
    requests_of: Callable[[str], Sequence[RequestNode]]

    def metrics(self, window_s: float, *, for_admin: bool) -> f.SystemMetrics:
        """The figures of the last `window_s` seconds."""
        return self.metrics_of(window_s, for_admin)

    def tree(self, siblings: int = SIGNAL_SIBLINGS) -> TaskNode:
        """The tasks that run now."""
        return read_tree(self.births, siblings=siblings, requests_of=self.requests_of)

    def tasks(self, siblings: int) -> f.SystemTasks:
        """The same, as `system.tasks` shows it."""
        tree = self.tree(siblings)
        return f.SystemTasks(
            tasks=trio.lowlevel.current_statistics().tasks_living, tree=as_json(tree), text=as_text(tree)
        )
