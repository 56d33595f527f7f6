"""What a member has to do with the others, besides raft's own messages.

`together` puts it together. Members and versions: `members`, `peerlist`, `versions`,
`storage_version`, `downgrade`. Who leads: `leadership`, `handover`, `firstticks`, `heartbeats`,
`blame`. What members ask each other: `peer_routes`, `to_leader`, `lease_forward`. Databases for
members that are too far behind: `host`, `sending`. Whether all hold the same: `corruption`,
`checked`, `peer_hashes`.
"""
