"""``popproxy serve``."""

from __future__ import annotations

from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption


def serve(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the proxy in the foreground until SIGTERM or SIGINT.

    It binds the ports and starts the workers, which become the user of process.user; it starts them again if they die,
    and lets running sessions end when it is told to stop (for as long as timeouts.drain). Log lines go to standard
    error; the audit log goes where audit.file says.

    For example:

        popproxy serve -c /etc/popproxy/popproxy.yaml

        systemctl start popproxy
    """
    from popproxy.app.supervising import become_supervisor  # noqa: PLC0415

    become_supervisor(config)
