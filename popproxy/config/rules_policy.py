"""The section policy: does it speak of listeners and mechanisms that there are?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from popproxy.config.finding import Finding, KeyPath, twice
from popproxy.config.messages import nearest
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.config.units import quote


def ways(listener: Listener) -> list[str]:
    """Every mechanism that a listener offers to some client."""
    if listener.protocol == "kpop":
        return ["KPOP"]
    passwords = listener.tls != "none" or bool(listener.cleartext_networks)
    found = [*listener.sasl, *(["USER", "PLAIN", "LOGIN"] if passwords else [])]
    found += ["GSSAPI"] if listener.gssapi else []
    found += ["APOP"] if listener.apop else []
    return found + (["RPOP"] if listener.rpop != "off" else [])


def _rules(config: Config) -> Iterator[Finding]:
    names = [listener.name for listener in config.listeners]
    for number, rule in enumerate(config.policy):
        at: KeyPath = ("policy", number)
        yield from twice(rule.mechanisms, (*at, "mechanisms"))
        for index, name in enumerate(rule.listeners):
            if name not in names:
                meant = nearest(name, names)
                cure = f"did you mean {meant}?" if meant else f"write one of {', '.join(names)}"
                yield Finding((*at, "listeners", index), f"there is no listener {name}", cure)
        for index, domain in enumerate(rule.domains):
            if "@" in domain:
                example = domain.rpartition("@")[2] or "example.com"
                yield Finding((*at, "domains", index), f"{quote(domain)} is not a domain", f"write {example}")
        offered = {way for listener in config.listeners if rule.concerns(listener.name) for way in ways(listener)}
        for index, name in enumerate(rule.mechanisms):
            if offered and name not in offered:
                because: tuple[KeyPath, ...] = (("listeners",), (*at, "listeners"))
                what = f"{name} is not offered there anyway"
                yield Finding((*at, "mechanisms", index), what, "remove it", warning=True, because=because)
        if rule.until is None and "warn" in rule.model_fields_set:
            cure = "add until: with the last day, or remove it"
            yield Finding((*at, "warn"), "has no effect without until", cure, warning=True)


POLICY_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (_rules,)
