"""Checks of PAM: is the service described, are its modules there, does it refuse a stranger?"""

from __future__ import annotations

import asyncio
import os
import secrets
from functools import partial

from popproxy.app.checks.finding import Finding, ok, problem, warning
from popproxy.app.checks.threads import in_daemon_thread
from popproxy.app.directories import CannotStart, start_pam
from popproxy.config.model_directories import Pam
from popproxy.directories.entry import Refused
from popproxy.directories.pam import PamDirectory
from popproxy.errors import Unavailable
from popproxy.state.helper import Helper
from popproxy.types import Secret

PROBE_SECONDS = 10.0
"""Longest time for one service."""
NOBODY = "popproxy-check-nobody"


async def check_pam(name: str, pam: Pam, *, offline: bool) -> list[Finding]:
    """Findings about one service. Asks it for somebody whom nobody is called, with a password made up on the spot."""
    area = f"directory {name}"
    try:
        started = await in_daemon_thread(partial(start_pam, pam, 1))
    except CannotStart as error:
        return [problem(area, str(error), error.cure)]
    helper = Helper(name, started, asyncio.get_running_loop(), workers=1, queue_limit=1, deadline=PROBE_SECONDS)
    findings = [ok(area, f"the service {pam.service} is described")] if offline else []
    try:
        if not offline:
            nobody = f"{NOBODY}@popproxy.invalid" if "{domain}" in pam.user else NOBODY
            answer = await PamDirectory(name, pam, helper).verify(nobody, Secret(secrets.token_hex(16)))
            if isinstance(answer, Refused):
                findings.append(ok(area, f"the service {pam.service} answers, and refuses somebody unknown"))
            else:
                cure = "put a module that judges passwords into it, such as pam_unix.so"
                findings.append(problem(area, f"the service {pam.service} lets anybody in", cure))
    except Unavailable as error:
        what = str(error).removeprefix(f"{name}: ")
        findings.append(problem(area, f"the service {pam.service} was asked in vain: {what}", "correct the service"))
    finally:
        helper.close()
    if os.geteuid() != 0:
        what = "without root, pam_unix.so can judge nobody's password but that of the user that it runs as"
        findings.append(warning(area, what, "start popproxy as root, with process.user; the helper alone stays root"))
    return findings
