"""What a running server does, seen from outside: its metrics and its HTTP API, read again and again."""
