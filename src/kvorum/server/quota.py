"""The backend quota: what a request may cost before there is no space left."""

from __future__ import annotations

from typing import Final, Protocol

from kvorum.pb import etcdserverpb as pb

DEFAULT_QUOTA: Final = 2 * 1024**3
KEY_OVERHEAD: Final = 256
"""Bytes that a key costs besides key and value, as etcd reckons it."""
LEASE_COST: Final = 64

_AMPLE: Final = 64 * 1024 * 1024


class Sized(Protocol):
    def size(self) -> int: ...


class Quota:
    """Compares the size of the backend, plus a request's cost, with the limit.

    ``limit`` is ``--quota-backend-bytes``: 0 means the default of 2 GiB, a negative one no limit.
    ``ample`` says that no single request can reach the limit, so that the hot path need not reckon;
    otherwise what is not committed yet counts by its cost. The size only changes with a commit, so
    `freeze` belongs before what it is to hold is taken, and `refresh` after it.
    """

    __slots__ = ("_backend", "_frozen", "_size", "_spent", "ample", "limit")

    def __init__(self, backend: Sized, limit: int) -> None:
        self._backend = backend
        self.limit = DEFAULT_QUOTA if limit == 0 else limit
        self._spent = 0  # for what is not in the size
        self._frozen = 0  # how much of that the commit under way puts there
        self.refresh()

    def freeze(self) -> None:
        """A commit begins; what comes from now on is for the next."""
        self._frozen = self._spent

    def refresh(self) -> None:
        self._size = self._backend.size()
        self._spent -= self._frozen
        self._frozen = 0
        self.ample = self.limit < 0 or self._size + _AMPLE < self.limit

    def allows(self, cost: int) -> bool:
        """Whether there is room; what costs nothing always has it."""
        return self.ample or cost == 0 or self._size + self._spent + cost < self.limit

    def spend(self, cost: int) -> None:
        """A request of this cost was carried out."""
        self._spent += cost


def put_cost(put: pb.PutRequest) -> int:
    return KEY_OVERHEAD + len(put.key) + len(put.value)


def txn_cost(txn: pb.TxnRequest) -> int:
    """The cost of the dearer branch, nested transactions included."""
    return max(_ops_cost(txn.success), _ops_cost(txn.failure))


def _ops_cost(ops: object) -> int:
    total = 0
    for op in ops:  # type: ignore[attr-defined] # a repeated field; its stub type is private
        kind = op.WhichOneof("request")
        if kind == "request_put":
            total += put_cost(op.request_put)
        elif kind == "request_txn":
            total += txn_cost(op.request_txn)
    return total
