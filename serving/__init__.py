"""The server: one base in memory, tasks from a store, HTTP in front."""
