"""Bytes <-> calls."""
