"""Makes the modules beside the tests importable, and gives logs small enough to cut often."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
