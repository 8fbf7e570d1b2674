"""Audit records in the words of others: Elastic Common Schema, OCSF, CEF. Pure.

ECS: https://www.elastic.co/docs/reference/ecs. OCSF: https://schema.ocsf.io/1.6.0. CEF: "Implementing ArcSight Common
Event Format", revision 26. What a schema has no name for is kept: in ECS as a field of its own, in OCSF in the whole
record under ``unmapped``.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from popproxy import __version__
from popproxy.observe.audit_query import DEEPEST, Record, messages

ECS_VERSION, OCSF_VERSION = "8.17.0", "1.6.0"

_CATEGORIES = {
    "auth": (["authentication"], ["start"]), "login": (["authentication"], ["start"]),
    "operator_login": (["authentication"], ["start"]),
    "session_end": (["session"], ["end"]), "admin": (["configuration"], ["info"]),
    "retr": (["email"], ["info"]), "top": (["email"], ["info"]), "dele": (["email"], ["info"]),
    "rset": (["email"], ["info"]), "update": (["email"], ["info"]), "deletions_abandoned": (["email"], ["info"]),
}  # fmt: skip
_KERBEROS, _OAUTH = ("GSSAPI", "KPOP"), ("OAUTHBEARER", "XOAUTH2")
_NAMES = {
    "auth": "Credential judged", "login": "Login", "session_end": "Session ended", "retr": "Message fetched",
    "top": "Beginning of a message fetched", "dele": "Message marked as deleted", "rset": "Deletions taken back",
    "update": "Deletions committed", "deletions_abandoned": "Deletions abandoned", "admin": "Command of an operator",
    "operator_login": "Login of an operator",
    "worker_lost": "Worker died with its sessions", "config_reload": "Configuration read again",
    "worker_command": "Command that a worker gives",
}  # fmt: skip


def ecs(record: Record) -> str:
    """A line of JSON with nested objects, and what ECS asks of every event."""
    categories, types = _CATEGORIES.get(str(record["event.action"]), (["process"], ["info"]))
    if str(record["event.action"]).startswith("backend_"):
        categories, types = ["network"], ["connection"]
    nested: dict[str, Any] = {}
    every = {
        "ecs.version": ECS_VERSION, "event.kind": "event", "event.category": categories, "event.type": types,
        "event.module": "popproxy", "event.dataset": "popproxy.audit", "network.application": "pop3",
        **({"destination.ip": record["destination.address"]} if _is_ip(record.get("destination.address")) else {}),
    }  # fmt: skip
    for name, value in {**every, **record}.items():
        shown = str(value).upper() if name == "tls.client.hash.sha256" else value  # ECS asks for capitals
        _put(nested, name.split(".", DEEPEST), shown)
    return _json(nested)


def _put(nested: dict[str, Any], path: list[str], value: object) -> None:
    """Where a name is both a value and the beginning of others, the others are put beside it, with dots."""
    for place, name in enumerate(path[:-1]):
        inner = nested.setdefault(name, {})
        if not isinstance(inner, dict):
            nested[".".join(path[place:])] = value
            return
        nested = inner
    nested[path[-1]] = value


# ---- OCSF ----


def ocsf(record: Record) -> str:
    """A line of JSON: Authentication, Datastore (a maildrop is read), Network, API Activity, Application Lifecycle."""
    action, outcome = str(record["event.action"]), str(record.get("event.outcome"))
    class_uid, activity, name = _ocsf_class(record, action)
    event: dict[str, Any] = {
        "class_uid": class_uid, "category_uid": class_uid // 1000, "activity_id": activity, "activity_name": name,
        "type_uid": class_uid * 100 + activity, "severity_id": 2 if outcome == "failure" else 1,
        "status_id": {"success": 1, "failure": 2}.get(outcome, 0), "time": _milliseconds(record),
        "message": _NAMES.get(action, action),
        "metadata": {
            "version": OCSF_VERSION, "product": {"name": "popproxy", "vendor_name": "popproxy", "version": __version__},
            "uid": _identity(record), "event_code": action,
            "sequence": record.get("event.sequence"), "original_time": record["@timestamp"],
        },
        "src_endpoint": _present(ip=record.get("source.ip"), port=record.get("source.port"))
        or {"name": "control socket" if action == "admin" else "popproxy"},
        "unmapped": dict(record),
    }  # fmt: skip
    if "event.reason" in record:
        event["status_detail"] = record["event.reason"]
    if "destination.address" in record:
        kind = "ip" if _is_ip(record["destination.address"]) else "hostname"
        event["dst_endpoint"] = {kind: record["destination.address"], "port": record.get("destination.port")}
    user = _present(name=record.get("user.name"), uid=record.get("user.hash") or record.get("user.id"))
    match class_uid:
        case 3002:
            mechanism = str(record.get("auth.mechanism", ""))
            service = "ssh" if action == "operator_login" else "pop3"
            event |= {"user": user or {"name": "unknown"}, "service": {"name": service}, "is_remote": True,
                      "session": {"uid": record.get("session.id")}}  # fmt: skip
            if mechanism:
                protocol = 2 if mechanism in _KERBEROS else 6 if mechanism in _OAUTH else 99
                event |= {"auth_protocol": mechanism, "auth_protocol_id": protocol}
                event["is_cleartext"] = "tls.version" not in record
        case 6005:
            event |= {"actor": {"user": user, "session": {"uid": record.get("session.id")}}, "type_id": 2,
                      "databucket": {"name": user.get("name"), "type_id": 99, "type": "maildrop"}}  # fmt: skip
        case 6003:
            event |= {"actor": {"user": user}, "api": {"operation": record.get("popproxy.command")}}
        case 6002:
            event["app"] = event["metadata"]["product"]
    return _json(event)


def _ocsf_class(record: Record, action: str) -> tuple[int, int, str]:
    """Class, activity, and the activity's name."""
    match action:
        case "login" | "operator_login":
            return 3002, 1, "Logon"
        case "auth" if record.get("event.outcome") != "success":
            return 3002, 1, "Logon"
        case "auth":  # the maildrop is not open yet: login follows
            return 3002, 99, "Credential accepted"
        case "session_end" if "user.name" in record:
            return 3002, 2, "Logoff"
        case "session_end":
            return 4001, 2, "Close"
        case "retr" | "top":
            return 6005, 1, "Read"
        case "update":
            return 6005, 7, "Delete"
        case "dele" | "rset" | "deletions_abandoned":
            return 6005, 99, _NAMES[action]
        case "admin":
            return 6003, 99, "Command"
        case "audit_start":
            return 6002, 3, "Start"
        case "audit_stop":
            return 6002, 4, "Stop"
    if action.startswith("backend_"):
        return (4001, 4, "Fail") if record.get("event.outcome") == "failure" else (4001, 99, action)
    return 6002, 99, action


# ---- CEF ----


def cef(record: Record) -> str:
    """A line without syslog header."""
    action = str(record["event.action"])
    severity = {"failure": 5, "unknown": 4}.get(str(record.get("event.outcome")), 2)
    head = "|".join(map(_header, ("popproxy", "popproxy", __version__, action, _NAMES.get(action, action))))
    source, target = record.get("source.ip"), record.get("destination.address")
    unique_ids = " ".join(str(one.get("unique_id", "")) for one in messages(record))
    labelled = (
        ("cs1", "session", record.get("session.id")), ("cs2", "mechanism", record.get("auth.mechanism")),
        ("cs3", "listener", record.get("popproxy.listener")), ("cs4", "pool", record.get("popproxy.pool")),
        ("cs5", "uniqueId", record.get("pop3.unique_id") or unique_ids),
        ("cs6", "command", record.get("popproxy.command")), ("cn1", "messageNumber", record.get("pop3.message_number")),
        ("cn2", "deleted", record.get("pop3.deleted_total")), ("cn3", "fetched", record.get("pop3.retr")),
        ("c6a2", "Source IPv6 Address", source if _version(source) == 6 else None),
        ("c6a3", "Destination IPv6 Address", target if _version(target) == 6 else None),
    )  # fmt: skip
    fields: dict[str, object] = {
        "rt": _milliseconds(record), "externalId": _identity(record),
        "app": "SSH" if action == "operator_login" else "POP3",
        "act": action, "outcome": record.get("event.outcome"), "reason": record.get("event.reason"),
        "suser": record.get("user.name"), "suid": record.get("user.hash"),
        "src": source if _version(source) == 4 else None, "spt": record.get("source.port"),
        "dst": target if _version(target) == 4 else None, "dhost": None if _is_ip(target) else target,
        "dpt": record.get("destination.port"), "in": record.get("pop3.bytes_in"), "out": record.get("pop3.bytes_out"),
    }  # fmt: skip
    for key, label, value in labelled:
        if value not in (None, ""):
            fields |= {key: value, f"{key}Label": label}
    extension = " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)
    return f"CEF:0|{head}|{severity}|{extension}"


def _header(text: str) -> str:
    return _printable(text).replace("\\", "\\\\").replace("|", "\\|")


def _value(value: object) -> str:
    return _printable(str(value)).replace("\\", "\\\\").replace("=", "\\=")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


# ---- pieces ----

FORMATS: dict[str, Callable[[Record], str]] = {"ecs": ecs, "ocsf": ocsf, "cef": cef}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _identity(record: Record) -> str:
    return f"{record.get('chain.segment', '')}-{record.get('event.sequence', '')}"


def _present(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _milliseconds(record: Record) -> int:
    return int(datetime.fromisoformat(str(record["@timestamp"])).timestamp() * 1000)


def _version(text: object) -> int:
    try:
        return ipaddress.ip_address(str(text).partition("%")[0]).version
    except ValueError:
        return 0


def _is_ip(text: object) -> bool:
    return _version(text) != 0
