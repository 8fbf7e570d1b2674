"""A KPOP client to try by hand, since few are left: ``python -m popproxy.demo.kpop localhost:1109 alice``.

It shows the ticket in KRB5CCNAME, asks what is in the maildrop, and prints the dialogue.
"""

from __future__ import annotations

import os
import sys

from popproxy.demo.client import Client, MismatchError
from popproxy.demo.tickets import shake_hands
from popproxy.errors import Unavailable
from popproxy.types import Address, Secret


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a session that went wrong, 64 for wrong usage."""
    host, _, port = arguments[0].rpartition(":") if len(arguments) == 2 else ("", "", "")
    if not host or not port.isdecimal():
        print("usage: python -m popproxy.demo.kpop HOST:PORT USER", file=sys.stderr)
        return 64
    from popproxy.kerberos.ticket_cache import ap_exchange  # noqa: PLC0415 - an optional library

    ticket = ap_exchange(os.environ.get("KRB5CCNAME", ""), host)
    transcript: list[str] = []
    try:
        with Client(
            Address(host, int(port)), None, first=lambda it: shake_hands(it, ticket), transcript=transcript
        ) as client:
            client.log_in(arguments[1], Secret("not looked at"))
            client.ask("LIST")
            client.body()
            client.ask("QUIT")
    except (MismatchError, OSError, Unavailable) as error:
        transcript.append(f"   {error}")
        return 1
    finally:
        print("\n".join(transcript))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
