"""Side-by-side benchmark of Kvorum and etcd, and the soak program. See README.md."""
