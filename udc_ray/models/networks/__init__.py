"""Published restoration networks, one file an architecture, written from their papers."""
