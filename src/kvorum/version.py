"""Our own version, and the etcd version whose behaviour, files and protocol we keep."""

from typing import Final

VERSION: Final = "0.1.0"
ETCD_VERSION: Final = "3.7.1"
MIN_CLUSTER_VERSION: Final = "3.0.0"
