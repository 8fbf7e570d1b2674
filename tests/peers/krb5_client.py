"""Kerberos clients without a network: AP-REQs by libkrb5, good and bent, and GSSAPI tokens by the GSSAPI library."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from ctypes import byref, c_char_p, c_int32, c_uint, c_void_p
from pathlib import Path

import gssapi
from gssapi import raw

KRB5_OID = bytes.fromhex("06092a864886f712010202")
_MUTUAL = 0x20000000
_SERVER = 16  # offset in krb5_creds
_TIMES = 48  # authtime, starttime, endtime, renew_till


class _Data(ctypes.Structure):
    _fields_ = (("magic", c_int32), ("length", c_uint), ("data", c_void_p))


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libkrb5.so.3")
    for name in ("krb5_free_context", "krb5_auth_con_free", "krb5_free_ap_rep_enc_part", "krb5_free_cred_contents"):
        getattr(library, name).restype = None
    return library


class ApReqClient:
    """One AP-REQ, made with a ticket that is in the credential cache already, valid or not.

    `shift` seconds are added to the client's clock. `ap_req` is the DER; `accepts(reply)` judges an AP-REP.
    """

    def __init__(
        self, ccache: Path, service: str = "pop/localhost@POPPROXY.TEST", *, mutual: bool = True, shift: int = 0
    ) -> None:
        self._krb5 = _library()
        self._context, self._auth = c_void_p(), c_void_p()
        self._call("krb5_init_context", byref(self._context), context=False)
        if shift:
            self._call("krb5_set_real_time", c_int32(int(time.time()) + shift), c_int32(0))
        creds = self._ticket(ccache, service)
        out = _Data()
        struct.pack_into("=4I", creds, _TIMES, 1, 1, 0x7FFFFFFF, 0)  # the library asks these, not the ticket
        options = c_int32(_MUTUAL if mutual else 0)
        self._call("krb5_mk_req_extended", byref(self._auth), options, c_void_p(), creds, byref(out))
        self._krb5.krb5_free_cred_contents(self._context, creds)
        self.ap_req = ctypes.string_at(out.data, out.length)
        self._krb5.krb5_free_data_contents(self._context, byref(out))

    def accepts(self, reply: bytes) -> bool:
        """Does the AP-REP prove that the service has read our AP-REQ?"""
        buffer = ctypes.create_string_buffer(reply, len(reply))
        part = c_void_p()
        data = _Data(0, len(reply), ctypes.addressof(buffer))
        if self._krb5.krb5_rd_rep(self._context, self._auth, byref(data), byref(part)):
            return False
        self._krb5.krb5_free_ap_rep_enc_part(self._context, part)
        return True

    def __del__(self) -> None:
        if self._auth.value is not None:
            self._krb5.krb5_auth_con_free(self._context, self._auth)
        if self._context.value is not None:
            self._krb5.krb5_free_context(self._context)

    def _ticket(self, ccache: Path, service: str) -> ctypes.Array[ctypes.c_char]:
        """Reads the cache itself: krb5_get_credentials would not give an expired ticket."""
        cache, cursor = c_void_p(), c_void_p()
        creds = ctypes.create_string_buffer(512)
        self._call("krb5_cc_resolve", c_char_p(f"FILE:{ccache}".encode()), byref(cache))
        self._call("krb5_cc_start_seq_get", cache, byref(cursor))
        try:
            while True:
                self._call("krb5_cc_next_cred", cache, byref(cursor), creds)
                if self._server(creds) == service:
                    return creds
                self._krb5.krb5_free_cred_contents(self._context, creds)
        finally:
            self._call("krb5_cc_end_seq_get", cache, byref(cursor))
            self._call("krb5_cc_close", cache)

    def _server(self, creds: ctypes.Array[ctypes.c_char]) -> str:
        principal = c_void_p.from_buffer(creds, _SERVER)
        text = c_char_p()
        self._call("krb5_unparse_name", principal, byref(text))
        name = (text.value or b"").decode()
        self._krb5.krb5_free_unparsed_name(self._context, text)
        return name

    def _call(self, function: str, *arguments: object, context: bool = True) -> None:
        code = getattr(self._krb5, function)(*((self._context,) if context else ()), *arguments)
        assert code == 0, f"{function}: {code}"


def gss_framed(ap_req: bytes) -> bytes:
    """An AP-REQ as the first token of GSSAPI's Kerberos mechanism (RFC 4121 section 4.1)."""
    inner = KRB5_OID + b"\x01\x00" + ap_req
    assert 0x100 <= len(inner) < 0x10000
    return b"\x60\x82" + len(inner).to_bytes(2, "big") + inner


def initiator(
    ccache: Path,
    service: str = "pop@localhost",
    *,
    mutual: bool = True,
    channel_binding: bytes | None = None,
    delegate: bool = False,
    ordered: bool = True,
) -> gssapi.SecurityContext:
    """A GSSAPI client with a ticket from `ccache`; `.step()` makes its first token."""
    credentials = gssapi.Credentials(
        raw.acquire_cred_from(
            {b"ccache": f"FILE:{ccache}".encode()}, mechs=[gssapi.MechType.kerberos], usage="initiate"
        ).creds
    )
    flags = gssapi.RequirementFlag.integrity | gssapi.RequirementFlag.confidentiality
    if ordered:
        flags |= gssapi.RequirementFlag.out_of_sequence_detection
    if mutual:
        flags |= gssapi.RequirementFlag.mutual_authentication
    if delegate:
        flags |= gssapi.RequirementFlag.delegate_to_peer
    bindings = None if channel_binding is None else raw.ChannelBindings(application_data=channel_binding)
    return gssapi.SecurityContext(
        name=gssapi.Name(service, gssapi.NameType.hostbased_service),
        creds=credentials,
        flags=flags,
        mech=gssapi.MechType.kerberos,
        usage="initiate",
        channel_bindings=bindings,
    )


def resident_octets() -> int:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
