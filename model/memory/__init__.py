"""Memory beyond the window: the states of a window, summed up in tokens that stand before the next one."""

from .cache import MemoryCache
from .rolling import Rolling, document_nll, read_document
from .slots import SlotMemory, begin, slide
from .window_memory import WindowMemory, behind, read_memory
from .windows import FIGURES, Read, behind_memory, memory_output, read_windows

__all__ = [
    "FIGURES",
    "MemoryCache",
    "Read",
    "Rolling",
    "SlotMemory",
    "WindowMemory",
    "begin",
    "behind",
    "behind_memory",
    "document_nll",
    "memory_output",
    "read_document",
    "read_memory",
    "read_windows",
    "slide",
]
