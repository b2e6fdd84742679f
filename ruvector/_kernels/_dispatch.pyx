"""Python's view of the dispatch table: which instruction set runs, and how to force one."""

cdef extern from "simd/table.h" nogil:
    int rv_isa_count()
    const char *rv_isa_name(int index)
    int rv_use_isa(const char *name)
    const rv_table *rv_tiles()

rv_isa_count()  # fills the table


def available_isas():
    """Names of the instruction sets that this machine can run, the fastest last."""
    return tuple([rv_isa_name(i).decode() for i in range(rv_isa_count())])


def current_isa():
    """Name of the instruction set in use."""
    return rv_tiles().isa.decode()


def set_isa(name):
    """Use the instruction set `name`.

    Raises
    ------
    ValueError
        If this machine or this build does not have it.
    """
    if rv_use_isa(name.encode()) != 0:
        raise ValueError(
            f"instruction set {name!r} is not available; this machine has "
            f"{', '.join(available_isas())}"
        )


cdef const rv_table *tiles() noexcept nogil:
    """The table in use."""
    return rv_tiles()
