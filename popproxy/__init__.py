"""popproxy: an authenticating, auditing POP3 proxy."""

__version__ = "0.1.0"
