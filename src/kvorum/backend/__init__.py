"""Storage: etcd's buckets in one LMDB file.

`Backend` gathers writes and commits them in the background; `Bucket` names the buckets; `ReadView`
is a consistent view for other threads. ``bucket.py`` says how keys are stored, ``database.py`` how
the file is opened and written.
"""

from kvorum.backend.backend import BATCH_INTERVAL, BATCH_LIMIT, FILE_NAME, Backend
from kvorum.backend.bucket import Bucket
from kvorum.backend.errors import (
    BackendError,
    CommitError,
    CorruptError,
    DefragError,
    LockedError,
    OpenError,
    ViewLostError,
)
from kvorum.backend.view import ReadView

__all__ = [
    "BATCH_INTERVAL",
    "BATCH_LIMIT",
    "FILE_NAME",
    "Backend",
    "BackendError",
    "Bucket",
    "CommitError",
    "CorruptError",
    "DefragError",
    "LockedError",
    "OpenError",
    "ReadView",
    "ViewLostError",
]
