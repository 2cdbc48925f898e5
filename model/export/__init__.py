"""Models in the formats of other programs: folders of transformers, and back, and GGUF files of llama.cpp.

Nothing that is written or read here holds or runs code.
"""

from .errors import ExportError
from .export import Exported, dtypes, export
from .transformers_reader import read_folder

__all__ = ["ExportError", "Exported", "dtypes", "export", "read_folder"]
