"""How many blocks of a kernel a multiprocessor holds at once, and what keeps it from holding more."""

from dataclasses import dataclass

# Of all three: registers of a multiprocessor, which its 4 parts share; warps and blocks that it holds; the steps in
# which a warp is given registers and a block shared memory; the shared memory that the driver adds to each block's.
_REGISTERS, _PARTS, _WARPS, _BLOCKS = 65_536, 4, 64, 32
_REGISTER_STEP, _SHARED_STEP, _SHARED_KEPT = 256, 128, 1024
# Shared memory of a multiprocessor. CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; the
# steps are cuda_occupancy.h's, which comes with the toolkit.
SHARED_BYTES = {"8.0": 164 * 1024, "9.0": 228 * 1024, "10.0": 228 * 1024}


@dataclass(frozen=True)
class Occupancy:
    """blocks and warps at once on a multiprocessor; limits: what allows no more, of "registers", "shared memory",
    "threads" and "blocks"."""

    blocks: int
    limits: tuple[str, ...]
    warps: int
    share: float  # of the 64 warps that it can hold


def occupancy(capability: str, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of a kernel on a device of a compute capability.

    threads: of a block, 1 to 1024. registers: of a thread. shared_bytes: of a block, static and dynamic.
    0 blocks: such a block cannot be launched. Raises ValueError for a capability whose limits are not known here.
    """
    if capability not in SHARED_BYTES:
        raise ValueError(f"capability must be one of {', '.join(SHARED_BYTES)}, got {capability!r}")
    warps = -(-threads // 32)
    of_a_warp = _up(32 * registers, _REGISTER_STEP)
    of_a_block = _up(shared_bytes + _SHARED_KEPT, _SHARED_STEP)
    blocks = {
        "registers": _REGISTERS // _PARTS // of_a_warp * _PARTS // warps,
        "shared memory": SHARED_BYTES[capability] // of_a_block,
        "threads": _WARPS // warps,
        "blocks": _BLOCKS,
    }
    if of_a_warp * _up(warps, _PARTS) > _REGISTERS:
        blocks["registers"] = 0
    most = min(blocks.values())
    return Occupancy(
        most, tuple(name for name, limit in blocks.items() if limit == most), most * warps, most * warps / _WARPS
    )


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
