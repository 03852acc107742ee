"""What the server does, with no idea of sockets or JSON."""
