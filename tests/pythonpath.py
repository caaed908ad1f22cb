"""Where processes that tests start find the package: in this checkout, and the rest where this process does."""

import os
from pathlib import Path

PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
