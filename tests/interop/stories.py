"""What is done with etcdctl: stories of commands whose output must not depend on the server."""

from __future__ import annotations

from interop.ctl import Run, run

_SIZE = r"\b\d+(\.\d+)? [kMG]?B\b"
_FORMS = ("simple", "json", "fields", "table")
_VERSION = r"\b\d+\.\d+\.\d+\b"
STATUS_NUMBERS = (
    _VERSION,
    r'"(dbSize|dbSizeInUse|raftIndex|raftAppliedIndex)":\d+',
    r'"(DBSize|DBSizeInUse|RaftIndex|RaftTerm|RaftAppliedIndex)" : \d+',
    _SIZE,
    r"(\|? *,? *)\b\d+\b *[,|] *\b\d+\b *[,|] *\b\d+\b",  # raft term, index, applied index
)

SAME_MEMBER = (r"Peer URLs already exists|member ID already exist",)
"""The id of a new member is made of its URLs and the second: it depends on how quick one is."""

PUT = [
    run("put", "foo", "bar"),
    run("put", "foo", "bar2", "--prev-kv"),
    run("put", "foo", "bar3", "--prev-kv", "-w", "json"),
    run("put", "foo", "bar4", "--prev-kv", "-w", "fields"),
    run("put", "foo", "bar5", "-w", "protobuf"),
    run("put", "foo", "bar6", "-w", "table"),
    run("put", "foo", "--ignore-value"),
    run("put", "foo", "--ignore-value", "--prev-kv"),
    run("put", "foo", "bar7", "--ignore-lease"),
    run("put", "foo", "bar8", "--ignore-value"),
    run("put", "stdin", stdin="from standard input\nin two lines"),
    run("put", "empty", ""),
    run("put", "dash", "--", "-1"),
    run("put", "unicode", "schön ☃ \t tab"),
    run("put", "missing", "--ignore-value"),
    run("put", "missing", "x", "--ignore-lease"),
    run("put", "x", "y", "--lease=1234abcd"),
    run("put", "x", "y", "--lease=no-hex"),
    run("put", "", "y"),
    run("put"),
    run("endpoint", "hashkv"),
]

GET = [
    *(run("put", f"get/{letter}", f"value {letter}") for letter in "edcba"),
    run("put", "get/a", "value a again"),
    run("get", "get/a"),
    run("get", "get/none"),
    run("get", "get/a", "get/d"),
    run("get", "get/d", "get/a"),
    run("get", "get/", "--prefix"),
    run("get", "get/c", "--from-key", "--limit=2"),
    run("get", "", "--from-key", "--limit=3"),
    run("get", "get/", "--prefix", "--keys-only"),
    run("get", "get/", "--prefix", "--keys-only", "-w", "json"),
    run("get", "get/", "--prefix", "--print-value-only"),
    run("get", "get/", "--prefix", "--count-only", "-w", "fields"),
    run("get", "get/", "--prefix", "--count-only"),
    run("get", "get/", "--prefix", "--limit=2", "-w", "json"),
    run("get", "get/", "--prefix", "--consistency=s"),
    run("get", "get/", "--prefix", "--consistency=x"),
    *(
        run("get", "get/", "--prefix", f"--order={order}", f"--sort-by={field}")
        for order in ("ASCEND", "DESCEND")
        for field in ("KEY", "CREATE", "MODIFY", "VALUE", "VERSION")
    ),
    run("get", "get/", "--prefix", "--order=sideways"),
    run("get", "get/", "--prefix", "--sort-by=colour"),
    run("get", "get/a", "--rev=2"),
    run("get", "get/", "--prefix", "--rev=20", "--limit=1"),
    run("get", "get/a", "--rev=1000000"),
    run("get", "get/a", "-w", "json"),
    run("get", "get/a", "-w", "fields"),
    run("get", "get/a", "-w", "protobuf"),
    run("get", "get/a", "-w", "table"),
    run("get", "get/a", "--hex"),
    run("get", "get/a", "get/d", "--prefix"),
    run("get"),
    run("endpoint", "hashkv"),
]

DELETE = [
    *(run("put", f"del/{letter}", letter) for letter in "abcdefg"),
    run("del", "del/a"),
    run("del", "del/a"),
    run("del", "del/b", "--prev-kv"),
    run("del", "del/c", "del/e", "--prev-kv"),
    run("del", "del/e", "-w", "json"),
    run("del", "del/", "--prefix", "--prev-kv", "-w", "json"),
    run("put", "zz1", "1"),
    run("put", "zz2", "2"),
    run("del", "zz", "--from-key"),
    run("del", "x", "-w", "fields"),
    run("del", "x", "-w", "protobuf"),
    run("del", "a", "b", "--from-key"),
    run("del"),
]

_TXN = """value("txn/a") = "1"
mod("txn/none") = "0"

put txn/b "two words"
get txn/a
del txn/c

get txn/ --prefix

"""
TXN = [
    run("put", "txn/a", "1"),
    run("put", "txn/c", "1"),
    run("txn", stdin=_TXN),
    run("txn", "-w", "json", stdin=_TXN),
    run("txn", "-w", "fields", stdin=_TXN),
    run("txn", "-w", "protobuf", stdin=_TXN),
    run("txn", "-i", stdin=_TXN),
    run("txn", stdin='value("txn/a") = "9"\n\nput txn/x 1\n\nget txn/a\n\n'),
    run("txn", stdin='version("txn/a") > "0"\n\nput txn/d 1\nput txn/d 2\n\n\n'),
    run("txn", stdin='create("txn/a") < "2"\n\nput a\n\n\n'),
    run("txn", stdin="\nput txn/e 1\n\n\n"),
    run("txn", stdin="nonsense\n\n\n\n"),
]

LEASE = [
    run("lease", "grant", "1000", save="lease"),
    run("put", "lease/a", "1", "--lease={lease}"),
    run("put", "lease/b", "2"),
    run("get", "lease/", "--prefix", "-w", "fields"),
    run("lease", "timetolive", "{lease}", blind=(r"remaining\(\d+s\)",)),
    run("lease", "timetolive", "{lease}", "--keys", blind=(r"remaining\(\d+s\)",)),
    run("lease", "timetolive", "{lease}", "--keys", "-w", "json", blind=(r'"ttl":\d+',)),
    run("lease", "timetolive", "{lease}", "--keys", "-w", "fields", blind=(r'"TTL" : \d+',)),
    run("lease", "keep-alive", "{lease}", "--once"),
    run("lease", "keep-alive", "{lease}", "--once", "-w", "json"),
    run("lease", "list"),
    run("lease", "list", "-w", "json"),
    run("lease", "revoke", "{lease}"),
    run("lease", "revoke", "{lease}"),
    run("get", "lease/", "--prefix"),
    run("lease", "timetolive", "{lease}"),
    run("lease", "keep-alive", "{lease}"),
    run("lease", "grant", "1", save="short", blind=(r"TTL\(\d+s\)",)),
    run("lease", "revoke", "{short}"),
    run("lease", "grant", "9000000001"),
    run("lease", "grant", "many"),
    run("lease", "grant", "3", save="kept"),
    run("lease", "keep-alive", "{kept}", lines=3),
    run("lease", "revoke", "{kept}"),
]

WATCH = [
    run("put", "watch/a", "1"),
    run("put", "watch/a", "2"),
    run("put", "watch/b", "3"),
    run("del", "watch/a"),
    run("watch", "watch/", "--prefix", "--rev=1", lines=12),
    run("watch", "watch/", "--prefix", "--rev=1", "--prev-kv", lines=16),
    run("watch", "watch/a", "--rev=1", "-w", "json", lines=1),
    run("watch", "watch/a", "--rev=1", "-w", "fields", lines=25),
    run("watch", "watch/a", "watch/z", "--rev=1", lines=12),
    run("watch", "watch/z", "watch/a", "--rev=1"),
    run("watch", "-i", stdin="watch watch/a --rev=1\n", lines=9),
    run("watch", "-i", stdin="watch watch/b --rev=1 --prev-kv\n", lines=3),
    run("watch", "-i", stdin="watch watch/quiet\nprogress\n", lines=1),
    run("watch", "-i", stdin="sing\n"),
    run("watch", "watch/a", "--rev=1", "--", "sh", "-c", "env | grep ETCD_WATCH_ | sort", lines=21),
    run(
        "watch",
        "watch/new",
        "--progress-notify",
        noticed="etcd_debugging_mvcc_watcher_total",
        during=(run("put", "watch/new", "1"), run("del", "watch/new")),
        lines=5,
    ),
    run("watch"),
]

COMPACT = [
    run("put", "compact", "1"),
    run("put", "compact", "2"),
    run("compaction", "5"),
    run("compaction", "5"),
    run("compaction", "6", "--physical"),
    run("compaction", "100000"),
    run("compaction", "word"),
    run("get", "compact", "--rev=3"),
    run("watch", "compact", "--rev=2"),
    run("watch", "compact", "--rev=6", "--prefix", lines=6),
]

ENDPOINT = [
    run("endpoint", "health"),
    run("endpoint", "health", "-w", "json"),
    run("endpoint", "health", "-w", "fields"),
    run("endpoint", "health", "-w", "table"),
    run("endpoint", "health", "--cluster"),
    *(run("endpoint", "status", "-w", form, blind=STATUS_NUMBERS) for form in _FORMS),
    run("endpoint", "status", "--cluster", blind=STATUS_NUMBERS),
    # Lease ids are the server's own and are hashed too.
    *(run("endpoint", "hashkv", "-w", form, blind=(r"\b\d{5,10}\b",)) for form in _FORMS),
]

MAINTENANCE = [
    run("defrag"),
    run("defrag", "--cluster"),
    run("alarm", "list"),
    run("alarm", "disarm"),
    run("move-leader", "1234"),
]

SNAPSHOT = [run("snapshot", "save", "one.snap", blind=(r'"size":"[^"]*"',))]

_LATE_URL = "--peer-urls=http://127.0.0.1:1"
MEMBER = [
    run("member", "list"),
    run("member", "list", "-w", "json"),
    run("member", "list", "-w", "fields"),
    run("member", "list", "-w", "table"),
    run("member", "list", "-w", "protobuf"),
]
MEMBERSHIP = [
    run("member", "remove", "1234"),
    run("member", "promote", "1234"),
    run("member", "update", "1234", _LATE_URL),
    run("member", "add", "late", "--peer-urls=not-an-url"),
    run(
        "member",
        "add",
        "late",
        "--learner",
        "--peer-urls=http://127.0.0.1:1",
        save="late",
        unordered=True,
    ),
    run("member", "add", "more", "--learner", "--peer-urls=http://127.0.0.1:2"),
    run("member", "add", "late", "--learner", _LATE_URL, blind=SAME_MEMBER),
    run("member", "list", "-w", "table", unordered=True),
    run("member", "promote", "{late}"),
    run("member", "update", "{late}", "--peer-urls=http://127.0.0.1:3"),
    run("member", "remove", "{late}"),
    run("member", "remove", "{late}"),
    run("member", "list"),
]

LOCK = [
    run("lock", "jobs", "--", "sh", "-c", "echo $ETCD_LOCK_KEY; echo $ETCD_LOCK_REV", save="l1"),
    run("lock", "jobs", "--", "sh", "-c", "exit 7"),
    run(
        "lock",
        "jobs",
        noticed="revision",
        during=(run("get", "jobs", "--prefix", "--keys-only", save="l2"),),
        lines=2,
    ),
    run("get", "jobs", "--prefix"),
    run("lock", "jobs", "--ttl=0", "--", "true"),
]

ELECT = [
    run(
        "elect",
        "office",
        "p1",
        noticed="revision",
        during=(
            run("get", "office", "--prefix", "--print-value-only"),
            run("elect", "office", "--listen", lines=2, save="l3"),
        ),
        lines=2,
    ),
    run("get", "office", "--prefix"),
    run("elect"),
]

AUTH = [
    run("role", "add", "root"),
    run("role", "add", "reader"),
    run("role", "add", "reader"),
    run("role", "grant-permission", "reader", "read", "open/", "--prefix"),
    run("role", "grant-permission", "reader", "readwrite", "box"),
    run("role", "grant-permission", "reader", "write", "from", "--from-key"),
    run("role", "grant-permission", "nobody", "read", "x"),
    run("role", "get", "reader"),
    run("role", "get", "reader", "-w", "json"),
    run("role", "list"),
    run("role", "revoke-permission", "reader", "from", "--from-key"),
    run("role", "revoke-permission", "reader", "nothing"),
    run("user", "add", "root:secret"),
    run("user", "add", "ann:pw1"),
    run("user", "add", "ann:pw1"),
    run("user", "add", "nopw", "--no-password"),
    run("user", "add", "late", "--interactive=false", stdin="pw2\n"),
    run("user", "grant-role", "root", "root"),
    run("user", "grant-role", "ann", "reader"),
    run("user", "grant-role", "ann", "nothing"),
    run("user", "get", "ann"),
    run("user", "get", "ann", "--detail"),
    run("user", "list"),
    run("auth", "status"),
    run("auth", "enable"),
    run("get", "open/x"),
    run("--user=ann:wrong", "get", "open/x"),
    run("--user=ann:pw1", "get", "open/x"),
    run("--user=ann:pw1", "get", "closed"),
    run("--user=ann:pw1", "put", "box", "1"),
    run("--user=ann:pw1", "put", "open/x", "1"),
    run("--user=ann", "--password=pw1", "get", "box"),
    run("--user=ann:pw1", "user", "list"),
    run("--user=ann:pw1", "watch", "closed"),
    run("--user=root:secret", "user", "passwd", "ann", "--interactive=false", stdin="pw3\n"),
    run("--user=ann:pw1", "get", "box"),
    run("--user=ann:pw3", "get", "box"),
    run("--user=root:secret", "user", "revoke-role", "ann", "reader"),
    run("--user=ann:pw3", "get", "box"),
    run("--user=root:secret", "auth", "status"),
    run("--user=root:secret", "auth", "disable"),
    run("user", "delete", "ann"),
    run("user", "delete", "ann"),
    run("role", "delete", "reader"),
    run("role", "delete", "reader"),
    run("auth", "status"),
]

STORIES: dict[str, list[Run]] = {
    "put": PUT,
    "get": GET,
    "delete": DELETE,
    "txn": TXN,
    "lease": LEASE,
    "watch": WATCH,
    "compact": COMPACT,
    "lock": LOCK,
    "elect": ELECT,
    "endpoint": ENDPOINT,
    "maintenance": MAINTENANCE,
    "member": MEMBER,
    "snapshot": SNAPSHOT,
    "membership": MEMBERSHIP,
    "auth": AUTH,
}

TO_COME = {
    "auth": "users and roles",
}
"""Stories of what this version does not serve yet. A row goes when its feature comes."""
