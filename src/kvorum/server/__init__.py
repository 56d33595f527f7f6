"""One member: propose, commit, apply, and what keeps it going.

Reading order: `proposer` gathers requests, `raftnode` drives consensus and the log, `applier`
carries out what was committed (`ranges`, `txn`), `reads` answers linearizable reads. Around them
stand `quota`, `expiry`, `compaction`, `autocompact`, `snapshotter` and `publisher`. The package
`bootstrap` opens a data directory, `cluster` is about the other members; `server` owns all of it.
"""
