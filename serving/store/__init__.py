"""The delta store: deltas in chunks, tasks with aliases, routes and history, keys, and a stream of changes.

Keys, for namespace ``ns`` (control keys share one hash tag, so one Lua script may touch them all even in a
cluster; blobs are tagged by digest, so they spread):

- ``ken:{ns}:revision``             counts every change
- ``ken:{ns}:tasks``                names, a set
- ``ken:{ns}:task:<name>``          hash: alias -> digest, ``@revision``, and ``@route`` as JSON where there is one
- ``ken:{ns}:versions:<name>``      digests published to the task, a sorted set by revision
- ``ken:{ns}:stack:<name>:<alias>`` what the alias, or ``@route``, was before, newest first, for rollback
- ``ken:{ns}:keys``                 hash: id of an API key -> JSON
- ``ken:{ns}:locked``              there once was a key; it is never taken back
- ``ken:{ns}:history:<name>``       who did what when, a capped list of JSON; of the keys: ``@keys``
- ``ken:{ns}:events``               a capped stream (task or ``@keys``, revision): a hint that something changed
- ``ken:{ns}:upload:<digest>``      leases of uploads in progress, or of ``gc``
- ``ken:{ns}:replicas``             hash: replica -> revision it has seen, when, and its metrics' address
- ``ken:ns:delta:{<digest>}``       hash: manifest, size, count, ``signature:<public key>``
- ``ken:ns:blob:{<digest>}:<i>``    4 MiB chunks
- ``ken:ns:parts:{<digest>}``       hash: chunks of an upload that is not complete, by position
- ``ken:ns:own-parts:{<digest>}:<owner>``  the same, of one owner alone; it expires
"""

from serving.names import check_digest, check_name
from serving.store.changes import Event
from serving.store.deltas import CHUNK_BYTES
from serving.store.garbage import Garbage
from serving.store.keys import KEYS_CHANGED
from serving.store.replicas import Replicas
from serving.store.tasks import Table, Task, Tasks
from serving.store.uploads import MOST_CHUNKS, Upload

__all__ = [
    "CHUNK_BYTES",
    "KEYS_CHANGED",
    "MOST_CHUNKS",
    "Event",
    "Store",
    "Table",
    "Task",
    "Upload",
    "check_digest",
    "check_name",
]


class Store(Tasks, Garbage, Replicas):
    """One namespace of a Redis or Valkey. Safe to share between threads.

    Every method raises `StoreError` where the server cannot be reached.
    """
