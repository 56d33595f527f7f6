"""Who belongs to the cluster: ids, the member list, and the rules for changing it."""

from kvorum.membership.cluster import Cluster
from kvorum.membership.ids import cluster_id, member_id
from kvorum.membership.member import Member

__all__ = ["Cluster", "Member", "cluster_id", "member_id"]
