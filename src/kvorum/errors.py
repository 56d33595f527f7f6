"""Every error that an etcd client can see: one table from class to status code and text.

Each class is one of etcd's client-visible errors (``rpctypes`` in etcd's Go client), with the gRPC
code and the exact message that etcd sends, since client libraries compare the text. Any part of
Kvorum may raise them; the API layer turns them into a status without a decision of its own.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """gRPC status codes, as numbered on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class EtcdError(Exception):
    """An expected failure with a status that the client gets as it is."""

    code: ClassVar[Code] = Code.UNKNOWN
    message: ClassVar[str] = ""
    by_message: ClassVar[dict[str, type[EtcdError]]] = {}

    def __init_subclass__(cls, *, code: Code, message: str) -> None:
        super().__init_subclass__()
        if message in EtcdError.by_message:
            raise TypeError(f"{cls.__name__}: the text {message!r} is taken")
        cls.code = code
        cls.message = message
        EtcdError.by_message[message] = cls

    def __str__(self) -> str:
        return self.message


class EmptyKey(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: key is not provided",
): ...


class KeyNotFound(EtcdError, code=Code.INVALID_ARGUMENT, message="etcdserver: key not found"): ...


class ValueProvided(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: value is provided",
): ...


class LeaseProvided(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: lease is provided",
): ...


class TooManyOps(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: too many operations in txn request",
): ...


class DuplicateKey(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: duplicate key given in txn request",
): ...


class InvalidClientAPIVersion(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: invalid client api version",
): ...


class InvalidSortOption(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: invalid sort option",
): ...


class Compacted(
    EtcdError,
    code=Code.OUT_OF_RANGE,
    message="etcdserver: mvcc: required revision has been compacted",
): ...


class FutureRev(
    EtcdError,
    code=Code.OUT_OF_RANGE,
    message="etcdserver: mvcc: required revision is a future revision",
): ...


class NoSpace(
    EtcdError,
    code=Code.RESOURCE_EXHAUSTED,
    message="etcdserver: mvcc: database space exceeded",
): ...


class LeaseNotFound(
    EtcdError,
    code=Code.NOT_FOUND,
    message="etcdserver: requested lease not found",
): ...


class LeaseExist(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: lease already exists",
): ...


class LeaseTTLTooLarge(
    EtcdError,
    code=Code.OUT_OF_RANGE,
    message="etcdserver: too large lease TTL",
): ...


class WatchCanceled(EtcdError, code=Code.CANCELLED, message="etcdserver: watch canceled"): ...


class MemberExist(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: member ID already exist",
): ...


class PeerURLExist(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: Peer URLs already exists",
): ...


class MemberNotEnoughStarted(
    EtcdError,
    code=Code.UNKNOWN,
    message="etcdserver: re-configuration failed due to not enough started members",
): ...


class MemberBadURLs(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: given member URLs are invalid",
): ...


class MemberNotFound(EtcdError, code=Code.NOT_FOUND, message="etcdserver: member not found"): ...


class MemberNotLearner(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: can only promote a learner member",
): ...


class LearnerNotReady(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: can only promote a learner member which is in sync with leader",
): ...


class TooManyLearners(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: too many learner members in cluster",
): ...


class ClusterIDMismatch(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: cluster ID mismatch",
): ...


class RequestTooLarge(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: request is too large",
): ...


class RequestTooManyRequests(
    EtcdError,
    code=Code.UNKNOWN,
    message="etcdserver: too many requests",
): ...


class RootUserNotExist(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: root user does not exist",
): ...


class RootRoleNotExist(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: root user does not have root role",
): ...


class UserAlreadyExist(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: user name already exists",
): ...


class UserEmpty(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: user name is empty",
): ...


class UserNotFound(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: user name not found",
): ...


class RoleAlreadyExist(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: role name already exists",
): ...


class RoleNotFound(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: role name not found",
): ...


class RoleEmpty(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: role name is empty",
): ...


class AuthFailed(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: authentication failed, invalid user ID or password",
): ...


class PermissionNotGiven(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: permission not given",
): ...


class PermissionDenied(
    EtcdError,
    code=Code.PERMISSION_DENIED,
    message="etcdserver: permission denied",
): ...


class RoleNotGranted(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: role is not granted to the user",
): ...


class PermissionNotGranted(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: permission is not granted to the role",
): ...


class AuthNotEnabled(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: authentication is not enabled",
): ...


class InvalidAuthToken(
    EtcdError,
    code=Code.UNAUTHENTICATED,
    message="etcdserver: invalid auth token",
): ...


class InvalidAuthMgmt(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: invalid auth management",
): ...


class AuthOldRevision(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: revision of auth store is old",
): ...


class NoLeader(EtcdError, code=Code.UNAVAILABLE, message="etcdserver: no leader"): ...


class NotLeader(EtcdError, code=Code.FAILED_PRECONDITION, message="etcdserver: not leader"): ...


class LeaderChanged(EtcdError, code=Code.UNAVAILABLE, message="etcdserver: leader changed"): ...


class NotCapable(EtcdError, code=Code.FAILED_PRECONDITION, message="etcdserver: not capable"): ...


class Stopped(EtcdError, code=Code.UNAVAILABLE, message="etcdserver: server stopped"): ...


class Timeout(EtcdError, code=Code.UNAVAILABLE, message="etcdserver: request timed out"): ...


class TimeoutDueToLeaderFail(
    EtcdError,
    code=Code.UNAVAILABLE,
    message="etcdserver: request timed out, possibly due to previous leader failure",
): ...


class TimeoutDueToConnectionLost(
    EtcdError,
    code=Code.UNAVAILABLE,
    message="etcdserver: request timed out, possibly due to connection lost",
): ...


class TimeoutWaitAppliedIndex(
    EtcdError,
    code=Code.UNAVAILABLE,
    message="etcdserver: request timed out, waiting for the applied index took too long",
): ...


class Unhealthy(EtcdError, code=Code.UNAVAILABLE, message="etcdserver: unhealthy cluster"): ...


class Corrupt(EtcdError, code=Code.DATA_LOSS, message="etcdserver: corrupt cluster"): ...


class NotSupportedForLearner(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: rpc not supported for learner",
): ...


class BadLeaderTransferee(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: bad leader transferee",
): ...


class WrongDowngradeVersionFormat(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: wrong downgrade target version format",
): ...


class InvalidDowngradeTargetVersion(
    EtcdError,
    code=Code.INVALID_ARGUMENT,
    message="etcdserver: invalid downgrade target version",
): ...


class ClusterVersionUnavailable(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: cluster version not found during downgrade",
): ...


class DowngradeInProcess(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: cluster has a downgrade job in progress",
): ...


class NoInflightDowngrade(
    EtcdError,
    code=Code.FAILED_PRECONDITION,
    message="etcdserver: no inflight downgrade job",
): ...


class Canceled(EtcdError, code=Code.CANCELLED, message="etcdserver: request canceled"): ...


class DeadlineExceeded(
    EtcdError,
    code=Code.DEADLINE_EXCEEDED,
    message="etcdserver: context deadline exceeded",
): ...
