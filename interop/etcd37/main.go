// A real etcd 3.7, for tests that mix its members with ours. Only the pinned module is ours to
// choose; everything that runs is etcd's.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
