"""The server: one resident base, tasks from a store, HTTP in front."""
