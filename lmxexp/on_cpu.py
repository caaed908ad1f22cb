"""What a process that trains on a CPU has to do to be fast; elsewhere nothing."""

from lmxexp import device, heap, kernels


def prepare() -> None:
    """Once or more often, before the first step."""
    if not device.is_gpu():
        heap.keep_freed_memory()
        kernels.precompile_header()
