"""What helps to test programs that use a cluster, and clusters themselves.

`linearizability` judges what clients were answered, `watch_guarantees` what watches were sent;
both work on histories written in the words of `history`.
"""
