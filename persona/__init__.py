"""A local-first server for AI personas: JSON-RPC 2.0 over WebSocket, on Trio."""

__version__ = "0.1.0"
