"""Which of a task's versions answers a request, and how its answers compare with another version's."""
