"""``popproxy audit verify``: has anybody changed the log, and is it whole?"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from popproxy.app.checks.finding import counted
from popproxy.cli.audit_logs import FilesArgument, log_files, progress, runs_here
from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, printable

if TYPE_CHECKING:
    from popproxy.observe.audit_findings import Finding, Segment
    from popproxy.observe.audit_verify import Verifier

TAMPERED, INCOMPLETE = 1, 3
"""Exit statuses; 0 is an intact log."""
KEPT = 1000
"""As many findings of each kind are told; beyond, they are counted."""
SHOWN = 20
"""As many of them to people."""

PublicKeyOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--public-key", "-k", metavar="FILE",
        help="Public keys in PEM; may be repeated. By default FILE.pub, as `popproxy audit key` has made it.",
    ),
]  # fmt: skip
AllowUnsignedOption = Annotated[
    bool,
    typer.Option("--allow-unsigned", help="There was no key yet: what is not signed is incomplete, not tampered with."),
]
NoKeyOption = Annotated[bool, typer.Option("--no-key", help="Look at hashes only, which whoever wrote can make anew.")]
CopyOption = Annotated[
    bool,
    typer.Option("--copy", help="It came through syslog: records may be repeated, and text stand before them."),
]


def verify(
    files: FilesArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    public_key: PublicKeyOption = None,
    no_key: NoKeyOption = False,
    allow_unsigned: AllowUnsignedOption = False,
    copy: CopyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether the log is as popproxy wrote it, and name the first record that is not.

    Exit status: 0 intact; 1 tampered with, that is: records were altered, removed, added or moved, or are not signed,
    so that whoever can write the file can have made them; 3 incomplete, and nothing says that somebody has done that: a
    killed process, a full disk, a file that is not there.

    The time before the key was made has no signatures: for its files there is --allow-unsigned.

    For example:

        popproxy audit verify

        popproxy audit verify --public-key audit.key.pub audit.jsonl-20261122-000000.gz audit.jsonl-20261123-000000
    """
    from popproxy.observe.audit_files import lines  # noqa: PLC0415
    from popproxy.observe.audit_findings import NOTES, TAMPERING, Finding, Kind, Place  # noqa: PLC0415
    from popproxy.observe.audit_keys import read_public  # noqa: PLC0415
    from popproxy.observe.audit_verify import Verifier  # noqa: PLC0415

    verifier = Verifier(None if no_key else read_public(public_key or _beside_the_key(config)), copy=copy)
    found: list[Finding] = []
    counts: Counter[str] = Counter()

    def keep(findings: list[Finding]) -> None:
        for finding in findings:
            counts[finding.kind] += 1
            if counts[finding.kind] <= KEPT:  # a flood of what is harmless must not hide what is not
                found.append(finding)

    with log_files(files, config) as logs:
        paths = [log.path for log in logs]
        for log in logs:
            number, damage = 0, list[str]()
            for number, line in enumerate(lines(log, progress(), damage.append), 1):
                keep(list(verifier.take(log.path, number, line)))
            place = Place(log.path, number + 1)
            keep([Finding(Kind.UNREADABLE, place, f"the rest is damaged: {why}") for why in damage])
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    keep(list(verifier.finish(_running(verifier))))
    if not verifier.records:
        keep([Finding(Kind.EMPTY, Place(paths[-1], 0), "there is no record at all")])
    order = {path: number for number, path in enumerate(paths)}
    found.sort(key=lambda finding: (order[finding.place.path], finding.place.line))
    bad = TAMPERING if allow_unsigned else TAMPERING | {Kind.UNSIGNED}
    tampering = sorted((one for one in found if one.kind in bad), key=lambda one: one.kind is Kind.UNSIGNED)
    incomplete = [finding for finding in found if finding.kind not in bad | NOTES]
    status = TAMPERED if tampering else INCOMPLETE if incomplete else 0
    with contextlib.suppress(BrokenPipeError):  # the status is what counts, and 0 would say that all is well
        if as_json:
            _print_json(status, paths, verifier, found, counts)
        else:
            notes = [finding for finding in found if finding.kind in NOTES]
            for word, some in (("TAMPERED", tampering), ("missing", incomplete), ("note", notes)):
                _print_findings(word, some)
            _print_summary(status, paths, verifier, counts, next(iter(tampering or incomplete), None))
    raise typer.Exit(status)


def _beside_the_key(config: Path) -> list[Path]:
    from popproxy.app.audit import public_file  # noqa: PLC0415
    from popproxy.config.loader import load  # noqa: PLC0415

    path = public_file(load(config).audit) if config.exists() else None
    if path is None or not path.exists():
        raise CommandError("where is the public key? Name it by --public-key, or write --no-key", ExitCode.USAGE)
    return [path]


def _running(verifier: Verifier) -> frozenset[str]:
    """The segments whose processes are at work."""
    origins = {name: segment.origin for name, segment in verifier.segments.items()}
    return frozenset(
        name
        for name, origin in origins.items()
        if runs_here(origin.get("process.pid"), origin.get("process.entity_id"))
    )


# ---- what is printed ----


def _print_findings(word: str, findings: list[Finding]) -> None:
    for finding in findings[:SHOWN]:
        record = f" record {finding.sequence}" if finding.sequence else ""
        segment = f" of {finding.segment}" if finding.segment else ""
        print(printable(f"{word:<8}  {finding.place}{record}{segment}: {finding.text} ({finding.kind})"))
    if len(findings) > SHOWN:
        print(f"{word:<8}  and {len(findings) - SHOWN} more; --json has them")


def _print_summary(
    status: int, paths: list[Path], verifier: Verifier, counts: Counter[str], first: Finding | None
) -> None:
    signed = f"signed with {', '.join(sorted(verifier.used))}" if verifier.used else "without signatures"
    print(
        f"{counted(verifier.records, 'record')} of {counted(len(verifier.segments), 'segment')} in "
        f"{counted(len(paths), 'file')}, {signed}"
    )
    if first is None:
        print("intact")
        return
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
    where = f"first at {first.place}" + (f", record {first.sequence}" if first.sequence else "")
    print(printable(f"{'TAMPERED WITH' if status == TAMPERED else 'incomplete'}, {where} ({kinds})"))


def _print_json(
    status: int, paths: list[Path], verifier: Verifier, findings: list[Finding], counts: Counter[str]
) -> None:
    print_json({
        "status": {0: "intact", TAMPERED: "tampered", INCOMPLETE: "incomplete"}[status],
        "files": paths, "records": verifier.records, "keys": sorted(verifier.used), "counts": dict(counts),
        "findings": [
            {"kind": found.kind, "file": found.place.path, "line": found.place.line, "segment": found.segment,
             "sequence": found.sequence, "text": found.text}
            for found in findings
        ],
        "segments": [_segment(segment) for segment in verifier.segments.values()],
    })  # fmt: skip


def _segment(segment: Segment) -> dict[str, object]:
    return {
        "segment": segment.name, "records": segment.records, "first": segment.first.sequence,
        "last": segment.last.sequence, "signed": segment.signed, "hash": segment.last.hash,
        "begun": segment.first.time, "latest": segment.last.time, "ended": segment.ended, **segment.origin,
    }  # fmt: skip
