"""The delta store: deltas in chunks, tasks with their aliases, routes and history, API keys, and a stream of changes.

The keys in Redis or Valkey, for namespace ``ns``. Control keys share one hash tag, ``{ns}``, so one Lua script may
change all of them even in a cluster. Keys of a digest are tagged by the digest, so deltas spread over a cluster.

- ``ken:{ns}:revision``             number of changes made so far
- ``ken:{ns}:tasks``                set of the tasks' names
- ``ken:{ns}:task:<name>``          hash: alias -> digest, ``@revision``, and ``@route`` as JSON where there is a route
- ``ken:{ns}:versions:<name>``      sorted set of the digests published to the task, by revision
- ``ken:{ns}:stack:<name>:<alias>`` list of earlier values of the alias, or of ``@route``, newest first, for rollback
- ``ken:{ns}:keys``                 hash: id of an API key -> its record as JSON
- ``ken:{ns}:locked``               exists once there was an API key, and is never deleted
- ``ken:{ns}:history:<name>``       capped list of JSON: who changed the task when and how; ``@keys`` for API keys
- ``ken:{ns}:events``               capped stream of (task or ``@keys``, revision): a hint that something changed
- ``ken:{ns}:upload:<digest>``      sorted set of the leases of uploads, or of ``gc``, by the second each ends
- ``ken:{ns}:marks``                hash: revision -> mark, of the latest 1000 changes, and ``epoch``: see `Lineage`
- ``ken:{ns}:adoptions``            set of the times the store was adopted: see `Adoptions`
- ``ken:{ns}:reports``              hash: replica -> when it last reported, and what, as JSON: see `Replicas`
- ``ken:{ns}:placement``            hash: ``epoch``, and ``body``, the `Placement` as compressed JSON: see `Placements`
- ``ken:{ns}:placement-leader``     name of the replica that computes the placement; expires
- ``ken:{ns}:loads``                hash: replica -> when it last reported its load, and what, as JSON
- ``ken:{ns}:present``              hash: replica -> the part of its load that is read every second, as JSON
- ``ken:{ns}:proxies``              hash: proxy -> when it last reported by which placement it routes, as JSON
- ``ken:ns:delta:{<digest>}``       hash: manifest, size, count of chunks, ``signature:<public key>``
- ``ken:ns:blob:{<digest>}:<i>``    chunk ``i``, 4 MiB; expires unless the delta is complete
- ``ken:ns:parts:{<digest>}``       hash: position -> chunk, of an upload that is not complete; expires
- ``ken:ns:own-parts:{<digest>}:<owner>``  the same, of one owner's upload
"""

from serving.names import check_digest, check_name
from serving.store.adoptions import STORE_ADOPTED, Adoptions
from serving.store.connection import Connection
from serving.store.deltas import CHUNK_BYTES, Deltas
from serving.store.events import Event, Events
from serving.store.garbage import Collected, Garbage
from serving.store.history import History
from serving.store.keys import KEYS_CHANGED, Keys
from serving.store.leases import Leases
from serving.store.lineage import Lineage
from serving.store.own_uploads import OwnUploads
from serving.store.parts import MOST_CHUNKS, Upload
from serving.store.placements import Placements
from serving.store.replicas import Replicas, Report
from serving.store.signatures import Signatures
from serving.store.swaps import Swaps
from serving.store.table import Table, Task
from serving.store.tasks import Tasks
from serving.store.uploads import Uploads

__all__ = [
    "CHUNK_BYTES",
    "KEYS_CHANGED",
    "MOST_CHUNKS",
    "STORE_ADOPTED",
    "Collected",
    "Event",
    "Lineage",
    "Report",
    "Store",
    "Table",
    "Task",
    "Upload",
    "check_digest",
    "check_name",
]


class Store:
    """One namespace of a Redis or Valkey, with a part for each thing kept in it. Safe to share between threads.

    Every method of every part raises `StoreError` where the server cannot be reached.

    Args:
        url: as `serving.store.urls.connect` takes it.
        namespace: stores of different namespaces on one server do not see each other.
        timeout: seconds for connecting, and for an answer.
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
        self.swaps = Swaps(self.connection)
        self.replicas = Replicas(self.connection)
        self.placements = Placements(self.connection)
        self.adoptions = Adoptions(self.connection, self.replicas)
        self.garbage = Garbage(self.connection, self.leases, self.deltas, self.uploads, self.tasks, self.events)
