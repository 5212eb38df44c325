"""A run's weights for other libraries: written, read back, compared with this project's towers, and
only then given their final name.

    python -m pipeline.export run_dir=runs/demo out=exported format=native
"""

from pipeline.export.export import FORMATS, export_weights
from pipeline.export.folder import ExportError

__all__ = ["FORMATS", "ExportError", "export_weights"]
