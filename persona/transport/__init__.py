"""Sockets <-> bytes."""
