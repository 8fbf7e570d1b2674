"""``popproxy demo``."""

from __future__ import annotations

from typing import Annotated

import typer


def _port(what: str, name: str) -> object:
    return typer.Option(name, metavar="PORT", min=0, max=65535, help=f"Port for {what}; 0 takes a free one.")


def demo(
    check: Annotated[
        bool, typer.Option("--check", help="Play whole sessions through the proxy and judge them.")
    ] = False,
    pop3_port: Annotated[int, _port("POP3 with STLS", "--pop3-port")] = 1110,
    pop3s_port: Annotated[int, _port("POP3 over TLS", "--pop3s-port")] = 1995,
    http_port: Annotated[int, _port("metrics", "--http-port")] = 9110,
    kpop_port: Annotated[int, _port("KPOP, if there is a KDC", "--kpop-port")] = 1109,
) -> None:
    """Show popproxy at work, without any configuration: a mail server, the proxy in front of it, and a guided tour.

    Starts a small POP3 server with sample messages, the proxy with a certificate made on the spot, and metrics; prints
    the commands to try, and shows the audit log as it grows, until Ctrl-C. If MIT's KDC is installed, it brings up a
    Kerberos realm of its own, too, and shows single sign-on. Everything listens on 127.0.0.1 only and is gone
    afterwards.

    With --check it is its own client, on free ports: it plays whole sessions, prints each with its result, and ends
    with exit code 0, or 1 if anything was not as it should be.

    For example:

        popproxy demo

        popproxy demo --pop3-port 0 --pop3s-port 0 --http-port 0 --kpop-port 0

        popproxy demo --check
    """
    from popproxy.app.loop import run  # noqa: PLC0415 - slow, as all that follows

    if check:
        from popproxy.demo.check import check_demo  # noqa: PLC0415

        raise typer.Exit(run(check_demo()))
    from popproxy.demo.realm import Ports  # noqa: PLC0415
    from popproxy.demo.tour import show_demo  # noqa: PLC0415

    raise typer.Exit(run(show_demo(Ports(pop3_port, pop3s_port, http_port, kpop_port))))
