"""From flags and a data directory to a member that is ready to start.

Reading order: `start` decides which way it goes, and `booted` is what comes out of each. `restart`
(and `force_new`) if the directory has a log; `new_cluster`, with `discovery_srv`, `discovery_v3`,
or `join` for one without. `begin` makes the first records of a log, `initial` and `same_urls` judge
what the flags say of the members.
"""
