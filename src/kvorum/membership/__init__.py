"""Who belongs to the cluster: ids, the member list, the rules for changing it, its version."""

from kvorum.membership.cluster import Cluster, FutureVersion
from kvorum.membership.ids import cluster_id, member_id
from kvorum.membership.member import Member
from kvorum.membership.version import Version, parse_version

__all__ = [
    "Cluster",
    "FutureVersion",
    "Member",
    "Version",
    "cluster_id",
    "member_id",
    "parse_version",
]
