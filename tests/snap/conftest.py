"""Makes the modules beside these tests, and those beside the log's, importable."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parent.parent / "wal"):
    sys.path.insert(0, str(folder))
