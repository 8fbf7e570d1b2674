"""What the records say of a certificate that a client has shown."""

from __future__ import annotations

from popproxy.observe.audit_trail import AuditTrail


def record_certificate(trail: AuditTrail, certificate: bytes | None) -> None:
    """Name it in every record of the session from here on; `certificate` is DER, None if there is none."""
    if certificate is None:
        return
    from cryptography import x509  # noqa: PLC0415 - large, and few clients show one
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        subject = parsed.subject.rfc4514_string()
    except ValueError:  # of TLS's own parser it was good enough
        return
    trail.client_certificate(subject, parsed.fingerprint(SHA256()).hex())
