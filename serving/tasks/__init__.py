"""The tasks and API keys a replica answers from: their table, and the watch that keeps it equal to the store's."""

from serving.tasks.table import TaskTable
from serving.tasks.watch import TaskWatch

__all__ = ["TaskTable", "TaskWatch"]
