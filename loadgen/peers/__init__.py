"""The smallest honest servers for the same job on other stacks, to be measured beside ours.

Each takes a port, prints `listening on ws://...` and serves `system.ping`, `events.subscribe` and
`system.broadcast` as docs/protocol.md has them, with orjson and without limits, roles or checks. What
they leave out is to their advantage, as it should be.
"""
