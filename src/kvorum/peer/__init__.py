"""How members speak with each other: etcd's rafthttp, over HTTP/1.1."""
