"""Kerberos: tickets by GSSAPI and by AP-REQ, passwords against a KDC, and whose maildrop a principal is."""
