"""A cluster in one process under one seed. See README.md."""

import os

os.environ.setdefault("KVORUM_PLAIN", "1")  # parts of compiled modules cannot be replaced
