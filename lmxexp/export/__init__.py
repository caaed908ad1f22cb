"""Models as Hugging Face directories: ``python -m lmxexp.export RUN_DIR OUT_DIR``."""

from lmxexp.export.write import export

__all__ = ["export"]
