"""The maildrop that the mail clients fetch: real messages, each with something that breaks careless relays."""

from __future__ import annotations

import base64
import random


def wire(message: bytes) -> bytes:
    """`message` as it stands on the wire before dot-stuffing: CRLF line ends, one at the end (RFC 1939 section 3)."""
    lines = message.replace(b"\r\n", b"\n")
    if not lines.endswith(b"\n"):
        lines += b"\n"
    return lines.replace(b"\n", b"\r\n")


def multiline(message: bytes) -> bytes:
    """Any octets as the body of a multi-line reply: dot-stuffed after each CRLF, a CRLF added only if the last one is
    missing, then the termination octets. Bare CR and LF are not line ends here and stay as they are."""
    stuffed = message.replace(b"\r\n.", b"\r\n..")
    if stuffed.startswith(b"."):
        stuffed = b"." + stuffed
    if stuffed and not stuffed.endswith(b"\r\n"):
        stuffed += b"\r\n"
    return stuffed + b".\r\n"


def unstuffed(body: bytes) -> bytes:
    """What `multiline` was made of, with its last line end: `body` without added dots and termination octets."""
    content = body.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")
    return content[1:] if content.startswith(b"..") else content


def _message(subject: str, body: bytes, *headers: str) -> bytes:
    lines = [
        "From: Ada Lovelace <ada@example.org>",
        "To: Alice <alice@example.com>",
        f"Subject: {subject}",
        "Date: Mon, 06 Jul 2026 09:30:00 +0000",
        f"Message-ID: <{subject.replace(' ', '.')}@example.org>",
        "MIME-Version: 1.0",
        *(headers or ("Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit")),
    ]
    return "\n".join(lines).encode() + b"\n\n" + body


_ATTACHMENT = base64.encodebytes(random.Random(1939).randbytes(60_000))

SAMPLES: tuple[bytes, ...] = (
    _message("a short one", b"Hello.\n"),
    _message("dots", b".\n..\n...\n.leading\nin . the middle\n\n.\n.\n"),
    _message("eight bit", "Grüße aus Köln, naïve café, 日本語\n".encode()),
    _message("long lines", b"x" * 990 + b"\n" + b"y" * 900 + b"\n" + b"z" * 512 + b"\n"),
    _message(
        "an attachment",
        b"--b\nContent-Type: text/plain\n\nSee there.\n\n--b\nContent-Type: application/octet-stream\n"
        b"Content-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=noise.bin\n\n"
        + _ATTACHMENT
        + b"\n--b--\n",
        'Content-Type: multipart/mixed; boundary="b"',
    ),
    _message("many lines", b"".join(b"line %d of many\n" % number for number in range(3000))),
    _message("empty body", b""),
    _message("last words", b"-- \nAda\n"),
)
"""Stored with LF as mail spools do; sizes from 300 octets to 100 KiB."""
