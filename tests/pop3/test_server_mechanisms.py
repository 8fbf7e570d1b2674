"""AUTH with mechanisms that look something up, or have words of their own for a refusal (RFC 5802, RFC 7628)."""

from __future__ import annotations

import base64
from functools import partial

import pytest

from popproxy.errors import LocalProtocolError
from popproxy.pop3.offer import Offer
from popproxy.pop3.server import ServerConnection
from popproxy.sasl.cram_md5 import CramMd5
from popproxy.sasl.external import External
from popproxy.sasl.oauth import OAuthBearer, OAuthRefusals, XOAuth2
from popproxy.sasl.scram import ScramExchange
from popproxy.types import Mechanism
from tests.pop3.helpers import VERIFIER, play_server

REFUSALS = OAuthRefusals("mail")
OFFER = Offer(
    passwords=False,
    mechanisms={
        "SCRAM-SHA-256": partial(ScramExchange, Mechanism.SCRAM_SHA_256, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"),
        "CRAM-MD5": partial(CramMd5, b"<1896.697170952@postoffice.reston.mci.net>"),
        "EXTERNAL": partial(External, b"DER"),
        "OAUTHBEARER": partial(OAuthBearer, REFUSALS),
        "XOAUTH2": partial(XOAuth2, REFUSALS),
    },
)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


CLIENT_FIRST = b64("n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
SERVER_FIRST = b64("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
_FINAL = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p="
CLIENT_FINAL = b64(_FINAL + "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
WRONG_PROOF = b64(_FINAL + "eHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
SERVER_FINAL = b64("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
BEARER = b64("n,a=alice,\1auth=Bearer t\1\1")
XBEARER = b64("user=alice\1auth=Bearer t\1\1")
SCRAM = f"""
        C: AUTH SCRAM-SHA-256 {CLIENT_FIRST}
        E: verifier SCRAM-SHA-256 'user'
        A: verifier
        S: + {SERVER_FIRST}
        """

DIALOGUES = {
    "the example of RFC 7677": f"""{SCRAM}
        C: {CLIENT_FINAL}
        S: + {SERVER_FINAL}
        C:
        E: credential SCRAM-SHA-256 'user' authzid=''
        A: accept
        S: +OK Logged in
        """,
    "a wrong proof is told by -ERR alone": f"""{SCRAM}
        C: {WRONG_PROOF}
        E: credential SCRAM-SHA-256 'user' authzid=''
        A: fail AUTH
        S: -ERR [AUTH] no
        C: NOOP
        S: +OK
        """,
    "a verifier that cannot be looked up": f"""
        C: AUTH SCRAM-SHA-256 {CLIENT_FIRST}
        E: verifier SCRAM-SHA-256 'user'
        A: fail SYS/TEMP
        S: -ERR [SYS/TEMP] no
        C: NOOP
        S: +OK
        """,
    "what comes during the look-up waits for it": f"""
        C~ AUTH SCRAM-SHA-256 {CLIENT_FIRST}\\r\\n*\\r\\nNOOP\\r\\n
        E: verifier SCRAM-SHA-256 'user'
        A: verifier
        S: + {SERVER_FIRST}
        S: -ERR authentication cancelled
        S: +OK
        """,
    "a malformed SCRAM message is told in SCRAM's words first": f"""
        C: AUTH SCRAM-SHA-256 {b64("n,,m=x,n=user,r=abc")}
        S: + {b64("e=extensions-not-supported")}
        C:
        S: -ERR SCRAM extensions are not supported
        C: NOOP
        S: +OK
        """,
    "a client may cancel instead of answering SCRAM's words": f"""{SCRAM}
        C: {b64("c=biws")}
        S: + {b64("e=other-error")}
        C: *
        S: -ERR malformed SCRAM message
        """,
    "cram-md5": f"""
        C: AUTH CRAM-MD5
        S: + {b64("<1896.697170952@postoffice.reston.mci.net>")}
        C: dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw
        E: credential CRAM-MD5 'tim' authzid=''
        """,
    "cram-md5 with an initial response": """
        C: AUTH CRAM-MD5 dGlt
        S: -ERR CRAM-MD5 has no initial response
        """,
    "external with an empty initial response": """
        C: AUTH EXTERNAL =
        E: credential EXTERNAL '' authzid=''
        """,
    "external without initial response": f"""
        C: AUTH EXTERNAL
        S: +\\x20
        C: {b64("alice")}
        E: credential EXTERNAL 'alice' authzid='alice'
        """,
    "a refused token is told in json first": f"""
        C: AUTH OAUTHBEARER {BEARER}
        E: credential OAUTHBEARER 'alice' authzid='alice'
        A: fail AUTH
        S: + {base64.b64encode(REFUSALS.token).decode()}
        C: AQ==
        S: -ERR [AUTH] no
        C: NOOP
        S: +OK
        """,
    "a token that cannot be judged is no refused token": f"""
        C: AUTH OAUTHBEARER {BEARER}
        E: credential OAUTHBEARER 'alice' authzid='alice'
        A: fail SYS/TEMP
        S: -ERR [SYS/TEMP] no
        C: NOOP
        S: +OK
        """,
    "an accepted token": f"""
        C: AUTH XOAUTH2 {XBEARER}
        E: credential XOAUTH2 'alice' authzid='alice'
        A: accept
        S: +OK Logged in
        """,
    "the last refused token ends the connection, but not before the client has answered": f"""
        C: AUTH XOAUTH2 {XBEARER}
        E: credential XOAUTH2 'alice' authzid='alice'
        A: final too_many_failures
        S: + {base64.b64encode(REFUSALS.xoauth2).decode()}
        C:
        S: -ERR [AUTH] no
        E: finished too_many_failures
        """,
    "a client that goes instead of answering": f"""
        C: AUTH XOAUTH2 {XBEARER}
        E: credential XOAUTH2 'alice' authzid='alice'
        A: fail AUTH
        S: + {base64.b64encode(REFUSALS.xoauth2).decode()}
        A: eof
        E: finished client_lost
        """,
    "a refusal does not outlive its credential": f"""
        C: AUTH OAUTHBEARER {BEARER}
        E: credential OAUTHBEARER 'alice' authzid='alice'
        A: fail SYS/TEMP
        S: -ERR [SYS/TEMP] no
        C: AUTH CRAM-MD5
        S: + {b64("<1896.697170952@postoffice.reston.mci.net>")}
        C: dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw
        E: credential CRAM-MD5 'tim' authzid=''
        A: fail AUTH
        S: -ERR [AUTH] no
        """,
}


@pytest.mark.parametrize("drip", [False, True], ids=["whole", "drip"])
@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name: str, drip: bool) -> None:
    play_server(DIALOGUES[name], OFFER, drip=drip)


def test_an_endless_answer_to_a_refusal_is_cut() -> None:
    core = ServerConnection(OFFER)
    core.receive_data(f"AUTH OAUTHBEARER {b64('n,,')}\r\n".encode())
    core.data_to_send()
    core.receive_data(b"x" * 20000 + b"\r\nNOOP\r\n")
    assert core.data_to_send() == b"-ERR line too long\r\n+OK\r\n"


def test_a_verifier_that_nobody_asked_for_is_a_bug_of_ours() -> None:
    with pytest.raises(LocalProtocolError):
        ServerConnection(OFFER).verifier_found(VERIFIER)
