"""Multi-version concurrency control: every revision of every key, and watches on them.

Read in this order: ``revision.py`` (revisions as bytes), ``kv.py`` (records), ``key_index.py`` and
``index.py`` (which revisions a key has), ``store.py`` (reads and writes), ``restore.py``,
``compaction.py``, ``hash.py``, and ``watch.py``.
"""
