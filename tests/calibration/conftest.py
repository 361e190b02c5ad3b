"""Makes the factories of cells and of records importable: tests are no package."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parent.parent / "report"):
    sys.path.insert(0, str(folder))
