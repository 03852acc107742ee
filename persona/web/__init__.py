"""HTTP beside the WebSocket: pages, probes and metrics, on a port of its own."""
