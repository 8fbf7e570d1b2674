"""Which process it is: numbers of processes are used again, and in each container there is a number 1."""

from __future__ import annotations

from pathlib import Path


def process_identity(process: int | str = "self") -> str | None:
    """The boot of the machine, and at which of its clock's ticks the process began; None if there is none, or no /proc.

    No two processes have both and the number in common, whatever their containers call the machine.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        status = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        return f"{boot}-{status.rpartition(')')[2].split()[19]}"  # proc_pid_stat(5): starttime, number 22 of 52
    except (OSError, IndexError, ValueError):
        return None
