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
from serving.store.connection import Connection
from serving.store.deltas import CHUNK_BYTES, Deltas
from serving.store.events import Event, Events
from serving.store.garbage import Garbage
from serving.store.history import History
from serving.store.keys import KEYS_CHANGED, Keys
from serving.store.leases import Leases
from serving.store.own_uploads import OwnUploads
from serving.store.parts import MOST_CHUNKS, Upload
from serving.store.replicas import Replicas
from serving.store.signatures import Signatures
from serving.store.table import Table, Task
from serving.store.tasks import Tasks
from serving.store.uploads import Uploads

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


class Store:
    """One namespace of a Redis or Valkey, a part for each thing that is kept. Safe to share between threads.

    Every method of every part raises `StoreError` where the server cannot be reached.
    """

    def __init__(self, url: str, namespace: str = "default", timeout: float = 5.0) -> None:
        self.connection = Connection(url, namespace, timeout)
        self.leases = Leases(self.connection)
        self.deltas = Deltas(self.connection, self.leases)
        self.signatures = Signatures(self.connection)
        self.uploads = Uploads(self.connection, self.leases, self.deltas)
        self.own_uploads = OwnUploads(self.connection, self.leases, self.deltas)
        self.tasks = Tasks(self.connection, self.leases, self.deltas, self.signatures)
        self.keys = Keys(self.connection)
        self.history = History(self.connection)
        self.events = Events(self.connection)
        self.replicas = Replicas(self.connection)
        self.garbage = Garbage(self.connection, self.leases, self.deltas, self.uploads, self.tasks)
