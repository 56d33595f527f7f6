"""What an answer to a posted message means."""

from __future__ import annotations

from kvorum.peer.context import Contact, Context
from kvorum.peer.handshake import (
    CLUSTER_ID,
    CLUSTER_ID_MISMATCH,
    INCOMPATIBLE_VERSION,
    REMOVED_MEMBER,
)
from kvorum.peer.http_client import HttpReply


class PostError(Exception):
    """The peer did not take what was posted."""


def check_posted(ctx: Context, contact: Contact, reply: HttpReply, where: str) -> None:
    """Raises PostError unless the peer took it; tells the host if it says that we are removed."""
    if reply.status == 204:
        return
    text = reply.body.decode("utf-8", "replace").rstrip("\n")
    if reply.status == 412:
        _log_incompatible(ctx, contact, reply, text)
        if text in (INCOMPATIBLE_VERSION, CLUSTER_ID_MISMATCH):
            raise PostError(text)
        raise PostError(f'unhandled error "{text}" when precondition failed')
    if reply.status == 403 and REMOVED_MEMBER in text:
        ctx.tell_removed()
        raise PostError("the member has been permanently removed from the cluster")
    raise PostError(f'unexpected http status {reply.status} ({text}) while posting to "{where}"')


def _log_incompatible(ctx: Context, contact: Contact, reply: HttpReply, text: str) -> None:
    if text == INCOMPATIBLE_VERSION:
        ctx.lg.error("request sent was ignored by peer", remote_peer_id=contact.name)
    elif text == CLUSTER_ID_MISMATCH:
        ctx.lg.error(
            "request sent was ignored due to cluster ID mismatch",
            remote_peer_id=contact.name,
            remote_peer_cluster_id=reply.headers.get(CLUSTER_ID.lower(), ""),
            local_member_cluster_id=ctx.us.cluster_text,
        )
